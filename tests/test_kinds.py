"""Arguments of the wrong kind, and what else a constructor refuses: one sentence with the key."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import pytest
from omegaconf import DictConfig

from sparsedet.config import ConfigError, instantiate
from sparsedet.config import LazyCall as L
from sparsedet.config.kinds import fits, words
from sparsedet.data import open_dataset
from sparsedet.engine.faults import Fault, explain
from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling import BoxL1Loss, FocalLoss, TopKSelector


class Part(Protocol):
    pass


class Thing:
    pass


@pytest.mark.parametrize(
    ("kind", "right", "wrong", "said"),
    [
        (int, [1, -1], [True, 1.0, "1", None, [1]], "a whole number"),
        (float, [1, 0.5], [True, "x", None], "a number"),
        (bool, [True], [1, "yes"], "true or false"),
        (int | None, [1, None], ["None"], "a whole number or null"),
        (str | os.PathLike[str] | None, ["x", None], [0], "text or a path or null"),
        (Literal["a", "b"], ["a"], ["c", 1], "one of a, b"),
        (Literal[1, 2], [1, 2], [True, 1.0, 3, "1"], "one of 1, 2"),
        (Sequence[int], [[1], (), [2, 3]], ["12", [1, "a"], 5], "a list of whole numbers"),
        (Sequence[str] | str, ["x", ["x"]], [[1]], "a list of texts or text"),
        (tuple[int, int], [[1, 2]], [[1], [1, 2, 3]], "a list of 2 values"),
        (Mapping[str, int], [{"a": 1}], [{"a": "x"}, [1]], "a mapping of names to values"),
        (Sequence[Part], [[], [Thing()]], [[None], ["x"]], "a list of values, each a component"),
        (Part, [Thing()], ["x", None, {"a": 1}], "a component (Part)"),
        (Callable[[int], int], [len], [3, "len"], "a function"),
        (Any, [1, None, "x"], [], ""),
    ],
)
def test_kinds(kind, right, wrong, said):
    assert all(fits(value, kind) for value in right)
    assert not any(fits(value, kind) for value in wrong)
    if said:
        assert words(kind).startswith(said)


class Fails:
    def __init__(self, size, *, error=KeyError):
        raise error(f"about {size}\nand more")


@pytest.mark.parametrize(
    "error", [KeyError, RuntimeError, OverflowError, AssertionError, TypeError]
)
def test_whatever_a_constructor_raises_is_one_sentence(error):
    cfg = DictConfig({"m": L(Fails)(size="big", error=error)}, flags={"allow_objects": True})
    with pytest.raises(ConfigError) as caught:
        instantiate(cfg.m)
    for word in ("m: Fails", "size='big'", error.__name__):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_kind_is_said_where_the_call_has_an_error_of_its_own(tmp_path):
    set_path = tmp_path / "set.json"
    set_path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    node = L(open_dataset)(annotations=str(set_path), class_names="cat")
    with pytest.raises(ConfigError, match="class_names must be a list of texts or null, got 'cat'"):
        instantiate(node)


def test_faults_of_the_machine_are_no_faults_of_the_config():
    with pytest.raises(FileNotFoundError):
        instantiate(L(Fails)(size=1, error=FileNotFoundError))


def from_torch(text):
    return RuntimeError(f"[enforce fail at alloc_cpu.cpp:1] {text}: can't allocate memory: you ...")


@pytest.mark.parametrize("error", [MemoryError, from_torch])
def test_what_does_not_fit_into_memory_is_named(error):
    cfg = DictConfig({"m": L(Fails)(size="big", error=error)}, flags={"allow_objects": True})
    with pytest.raises(ConfigError) as caught:
        instantiate(cfg.m)
    assert str(caught.value).startswith(
        "m: there is not enough memory for Fails with size='big'. Lower "
    )
    assert explain(caught.value, otherwise=2) == Fault(str(caught.value), 2)


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("num_layers", 10**9, "num_layers must be in [0, 1000], got 1000000000. Set m.num_layers."),
        ("num_workers", 10**7, "num_workers must be in [0, 1000], got 10000000"),
        ("num_queries", 10**9, "num_queries must be in [0, 10000000], got 1000000000"),
        ("embed_dim", 10**7, "embed_dim must be in [0, 65536], got 10000000"),
    ],
)
def test_a_call_that_would_not_end_is_not_made(argument, value, said):
    made = []

    def part(*, num_layers: int = 1, num_workers: int = 1, num_queries: int = 1, embed_dim=1):
        made.append(1)

    part.__module__ = "sparsedet.modeling"
    part.__annotations__["embed_dim"] = int
    cfg = DictConfig({"m": L(part)(**{argument: value})}, flags={"allow_objects": True})
    with pytest.raises(ConfigError) as error:
        instantiate(cfg.m)
    assert said in str(error.value)
    assert not made


@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        (TopKSelector, {"keep_ratio": "half"}, "TopKSelector.keep_ratio must be"),
        (
            SinePositionEmbedding,
            {"embed_dim": "64"},
            "SinePositionEmbedding.embed_dim must be a whole",
        ),
        (BoxL1Loss, {"weight": True}, "BoxL1Loss.weight must be a number, got True."),
        (SinePositionEmbedding, {"embed_dim": 10**400}, "m.embed_dim cannot be 1000"),
        (BoxL1Loss, {"weight": math.nan}, "m.weight cannot be nan"),
        (BoxL1Loss, {"weight": -1}, "BoxL1Loss.weight must be at least 0, got -1. Set m.weight."),
        (FocalLoss, {"weight": 1.0, "alpha": 1.5}, "FocalLoss.alpha must be in [0, 1], got 1.5."),
        (
            SinePositionEmbedding,
            {"embed_dim": -64},
            "SinePositionEmbedding.embed_dim must be in [0, 65536], got -64.",
        ),
        (BoxL1Loss, {"weight": math.inf}, "BoxL1Loss.weight must be finite, got inf."),
        (BoxL1Loss, {"weight": None}, "BoxL1Loss.weight must be a number, got None. Set m.weight."),
    ],
)
def test_arguments_are_of_the_kind_of_their_annotation(target, arguments, words):
    cfg = DictConfig({"m": L(target)(**arguments)}, flags={"allow_objects": True})
    with pytest.raises(ConfigError) as error:
        instantiate(cfg.m)
    assert words in str(error.value)


def test_a_value_that_stands_elsewhere_is_named_there():
    cfg = DictConfig(
        {"size": None, "m": L(SinePositionEmbedding)(embed_dim="${size}")},
        flags={"allow_objects": True},
    )
    with pytest.raises(ConfigError, match=r"Set size\.$"):
        instantiate(cfg.m)


def test_references_in_a_circle_are_one_sentence():
    cfg = DictConfig({"a": "${b}", "b": "${a}"}, flags={"allow_objects": True})
    with pytest.raises(ConfigError, match=r"^a has no value: .*Set a\.$"):
        instantiate(cfg)

"""Arguments of the wrong kind, and what else a constructor refuses: one sentence with the key."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import pytest
from omegaconf import DictConfig

from sparsedet.config import ConfigError, instantiate
from sparsedet.config import LazyCall as L
from sparsedet.config.kinds import fits, words
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


@pytest.mark.parametrize("error", [MemoryError, FileNotFoundError])
def test_faults_of_the_machine_are_no_faults_of_the_config(error):
    with pytest.raises(error):
        instantiate(L(Fails)(size=1, error=error))


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
            "SinePositionEmbedding.embed_dim must be at least 0, got -64.",
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

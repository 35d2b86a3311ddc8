"""Checkpoints: atomic, safe, strict."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.checkpoint import (
    CheckpointError,
    CheckpointStore,
    atomic_write,
    load_checkpoint,
    load_weights,
    model_weights,
    restore_model,
    save_checkpoint,
)
from sparsedet.modeling import TokenSparseDetector
from tests.modeling.small import DAM, NAMED, detector, parts, randomize


class Detector(nn.Module):
    """A backbone, a trunk, a class head and a label embedding (one row more)."""

    def __init__(self, num_classes: int = 7, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"body": nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))}
        )
        self.trunk = nn.Linear(width, width)
        head = nn.ModuleDict({"class_embed": nn.Linear(width, num_classes)})
        self.heads = nn.ModuleDict({"decoder_heads": nn.ModuleList([head])})
        labels = nn.Embedding(num_classes + 1, width)
        self.denoising = nn.ModuleDict({"label_embedding": labels})


HEADS = (
    "heads.decoder_heads.0.class_embed.weight",
    "heads.decoder_heads.0.class_embed.bias",
    "denoising.label_embedding.weight",
)


def _same(a: nn.Module, b: nn.Module, skip: tuple[str, ...] = ()) -> bool:
    others = b.state_dict()
    return all(
        torch.equal(value, others[name])
        for name, value in a.state_dict().items()
        if name not in skip
    )


def _save(model: nn.Module, path: Path) -> Path:
    save_checkpoint({"model": model.state_dict()}, path)
    return path


# --- files


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    model, other = Detector(), Detector()
    assert not _same(model, other)
    report = load_weights(other, _save(model, tmp_path / name))
    assert _same(model, other)
    assert report.num_loaded == len(model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bare_and_foreign_state_dicts(tmp_path: Path) -> None:
    state = Detector().state_dict()
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1.0)}, tmp_path / "args.pth")
    torch.save({"model_ema": state, "epoch": 3}, tmp_path / "average.pth")
    for name in ("bare.pth", "args.pth", "average.pth"):
        assert load_checkpoint(tmp_path / name)["model"].keys() == state.keys()


class _Custom:
    pass


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"no zip", "not a checkpoint"),
        (b"", "not a checkpoint"),
        ({"model": {"a": _Custom()}}, "_Custom, which safe loading refuses"),
        ({"epoch": 3}, "has no weights"),
        ([1, 2], "has no weights"),
        ({0: torch.zeros(1)}, "maps names to tensors"),
        ({"model": {"a": torch.zeros(1), 7: torch.zeros(1)}}, "maps names to tensors"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_cut_off_files(tmp_path: Path, name: str) -> None:
    path = _save(Detector(), tmp_path / name)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


# --- weights


def test_every_key_must_fit(tmp_path: Path) -> None:
    model = Detector()
    state = model.state_dict()
    state["extra"] = state.pop("trunk.bias")
    state["trunk.weight"] = torch.zeros(5, 4)
    save_checkpoint({"model": state}, tmp_path / "a.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "a.pth")
    message = str(caught.value)
    assert "1 missing (trunk.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "trunk.weight (5, 4) instead of (4, 4)" in message
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_other_classes_are_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    path = _save(Detector(91), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(Detector(3), path)
    message = str(caught.value)
    assert "91 classes, but the model has 3" in message
    assert f"{HEADS[0]} is (91, 4) in the file and (3, 4) in the model" in message
    assert "train.reinit_class_heads=True" in message and "contiguous" not in message
    with pytest.raises(CheckpointError, match="--classes contiguous` keeps COCO's 80"):
        load_weights(Detector(80), path)


@pytest.mark.parametrize("num_classes", [3, 7, 20])
def test_class_heads_begin_anew(tmp_path: Path, num_classes: int) -> None:
    source, model = Detector(7), Detector(num_classes)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, _save(source, tmp_path / "a.pth"), reinit_class_heads=True)
    assert report.reinitialized == HEADS
    assert report.num_loaded == len(initial) - len(HEADS)
    assert _same(model, source, skip=HEADS)
    assert all(torch.equal(model.state_dict()[name], initial[name]) for name in HEADS)


def test_the_same_classes_are_kept_unless_asked_to_begin_anew(tmp_path: Path) -> None:
    source, model = Detector(), Detector()
    assert load_weights(model, _save(source, tmp_path / "a.pth")).reinitialized == ()
    assert _same(model, source)


def test_what_begins_anew_need_not_be_there(tmp_path: Path) -> None:
    source, model = Detector(), Detector()
    initial = model.state_dict()[HEADS[2]].clone()
    state = {name: tensor for name, tensor in source.state_dict().items() if name != HEADS[2]}
    save_checkpoint({"model": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="1 missing"):
        load_weights(model, tmp_path / "a.pth")
    load_weights(model, tmp_path / "a.pth", reinit_class_heads=True)
    assert torch.equal(model.state_dict()[HEADS[2]], initial)
    assert _same(model, source, skip=HEADS)


@pytest.mark.parametrize("anew", [False, True])
def test_as_many_queries_as_classes_are_no_classes(tmp_path: Path, anew: bool) -> None:
    source, model = (_detector("deformable_plain", n, seed=n, num_queries=n) for n in (10, 6))
    path = _save(source, tmp_path / "a.pth")
    message = r"of another shape.*query_initializer\.embedding\.weight \(10, 64\) instead"
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, path, reinit_class_heads=anew)


def _detector(name: str, num_classes: int, seed: int, **options: int) -> TokenSparseDetector:
    given = parts(NAMED[name], num_classes=num_classes, **options) | {"num_classes": num_classes}
    model = TokenSparseDetector(**given)
    randomize(model, seed)
    return model


@pytest.mark.parametrize("classes", [5, 3])
@pytest.mark.parametrize("name", ["deformable_plain", "sparse", "dn_deformable", "focus"])
def test_what_depends_on_the_classes_begins_anew_and_the_rest_is_kept(
    tmp_path: Path, name: str, classes: int
) -> None:
    source, model = _detector(name, classes, seed=1), _detector(name, 3, seed=2)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, _save(source, tmp_path / "a.pth"), reinit_class_heads=True)
    depends = {key for key in initial if ".class_embed." in key or ".label_embedding." in key}
    assert set(report.reinitialized) == depends
    assert (
        len(depends)
        == 2 * len(model.heads.decoder_heads)
        + {
            "deformable_plain": 0,
            "sparse": 2 * 2,  # first stage, one encoder layer
            "dn_deformable": 1,
            "focus": 2 + 1,
        }[name]
    )
    assert _same(model, source, skip=tuple(depends))
    assert all(torch.equal(model.state_dict()[key], initial[key]) for key in depends)


def test_another_selector_takes_the_weights(tmp_path: Path) -> None:
    """What it is to know of images is reported as missing, and kept where the file has it."""
    top_k = detector(NAMED["focus"])
    adaptive = detector(replace(NAMED["focus"], selector="AdaptiveSelector"), seed=2)
    known = {name for name in adaptive.state_dict() if name.startswith("selector.")}
    before = adaptive.selector.curve.shares.clone()
    report = load_weights(adaptive, _save(top_k, tmp_path / "top_k.pth"))
    assert set(report.uncalibrated) == known != set()
    assert _same(top_k, adaptive)
    assert torch.equal(adaptive.selector.curve.shares, before)
    path = _save(adaptive, tmp_path / "adaptive.pth")
    report = load_weights(detector(NAMED["focus"], seed=3), path)
    assert set(report.unused) == known and not report.uncalibrated
    other = detector(replace(NAMED["focus"], selector="AdaptiveSelector"), seed=4)
    other.selector.forget()
    assert not load_weights(other, path).uncalibrated
    assert _same(adaptive, other)
    assert other.selector.curve.num_images > 0


@pytest.mark.parametrize("part", ["scorer", "denoising"])
def test_what_a_model_does_not_use_is_left_out(tmp_path: Path, part: str) -> None:
    source, model = _detector("focus", 3, seed=1), _detector("focus", 3, seed=2)
    path = _save(source, tmp_path / "a.pth")
    surplus = {key for key in source.state_dict() if key.startswith(f"{part}.")}
    setattr(model, part, None)
    assert set(load_weights(model, path).unused) == surplus != set()
    assert _same(model, source)


def test_heads_of_a_scorer_are_left_out_with_it(tmp_path: Path) -> None:
    """The head of ObjectnessScorer, and the token embedding where nothing else uses it."""
    dense = detector(NAMED["deformable_plain"])
    for chosen in ({"selector": "TopKSelector", "scorer": "ObjectnessScorer"}, DAM):
        source = detector(replace(NAMED["deformable_plain"], **chosen))
        path = _save(source, tmp_path / f"{chosen['scorer']}.pth")
        unused = load_weights(dense, path).unused
        assert any(key.startswith("heads.") for key in unused)
        assert _same(dense, source)


def test_other_mismatches_are_not_taken_for_classes(tmp_path: Path) -> None:
    path = _save(Detector(7, width=8), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="of another shape"):
        load_weights(Detector(3), path, reinit_class_heads=True)


@pytest.mark.parametrize("prefix", ["", "features."])
def test_backbone_files(tmp_path: Path, prefix: str) -> None:
    source, model = Detector(), Detector()
    body = source.backbone["body"].state_dict()
    state = {prefix + name: value for name, value in body.items()}
    save_checkpoint({"model": state | {"fc.bias": torch.zeros(1000)}}, tmp_path / "a.pth")
    report = load_weights(model, tmp_path / "a.pth")
    assert report.module == "backbone.body"
    assert report.unused == ("fc.bias",)
    assert _same(source.backbone, model.backbone)
    assert not _same(source.trunk, model.trunk)


def test_files_of_something_else(tmp_path: Path) -> None:
    """Also a whole detector with other names: its backbone alone is not what was meant."""
    state = Detector().state_dict()
    body = {f"body.{n}": v for n, v in state.items() if n.startswith("backbone.")}
    rest = {f"other.{n}": v for n, v in state.items() if not n.startswith("backbone.")}
    save_checkpoint({"model": body | rest}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no tensor names of the model or its backbone"):
        load_weights(Detector(), tmp_path / "a.pth")


def test_averaged_weights_are_preferred() -> None:
    raw, average = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    for averaged in ({"ema": {"model": average, "decay": 0.9}}, {"model_ema": average}):
        assert model_weights({"model": raw, **averaged}) == average
    assert model_weights({"model": raw, "ema": None}) == raw


def test_a_resumed_run_keeps_its_classes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"set another train\.output_dir"):
        restore_model(Detector(3), Detector(7).state_dict(), tmp_path / "a.pth")


# --- runs


def _checkpoint(value: float) -> dict:
    return {"model": {"w": torch.tensor([value])}}


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, max_to_keep=2)
    assert store.load_last() is None
    for iteration in (5, 10, 15):
        store.save(_checkpoint(iteration), iteration)
    store.save_weights(_checkpoint(7.0), "best")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_0000010.pth",
        "checkpoint_0000015.pth",
        "last_checkpoint",
        "model_best.pth",
    ]
    last = store.load_last()
    assert last is not None
    assert last[0]["model"]["w"].item() == 15
    assert last[1].name == (tmp_path / "last_checkpoint").read_text().strip()


def test_a_damaged_last_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    store = CheckpointStore(tmp_path)
    store.save(_checkpoint(1.0), 1)
    broken = store.save(_checkpoint(2.0), 2)
    broken.write_bytes(broken.read_bytes()[:50])
    last = store.load_last()
    assert last is not None and last[1].name == "checkpoint_0000001.pth"
    assert str(broken) in caplog.text
    last[1].unlink()
    with pytest.raises(CheckpointError, match="checkpoint_0000002"):
        store.load_last()


def test_the_pointer_is_not_needed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(_checkpoint(1.0), 9)
    (tmp_path / "last_checkpoint").unlink()
    last = store.load_last()
    assert last is not None and last[1].name == "checkpoint_0000009.pth"


def test_the_pointer_goes_before_newer_files(tmp_path: Path) -> None:
    """Whoever wants to go on from an earlier one writes its name there."""
    store = CheckpointStore(tmp_path)
    store.save(_checkpoint(1.0), 1)
    store.save(_checkpoint(2.0), 2)
    (tmp_path / "last_checkpoint").write_text("checkpoint_0000001.pth\n")
    last = store.load_last()
    assert last is not None and last[1].name == "checkpoint_0000001.pth"


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Also where these have more digits than the names provide for."""
    store = CheckpointStore(tmp_path, max_to_keep=2)
    for iteration in (9_999_998, 9_999_999, 10_000_000):
        store.save(_checkpoint(1.0), iteration)
    names = [path.name for path in store.paths()]
    assert names == ["checkpoint_9999999.pth", "checkpoint_10000000.pth"]


def test_half_written_files_are_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint_0000001.pth.123.tmp").write_bytes(b"half")
    CheckpointStore(tmp_path).clean()
    assert not list(tmp_path.iterdir())


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_to_keep must be at least 1, got 0"):
        CheckpointStore(tmp_path, max_to_keep=0)

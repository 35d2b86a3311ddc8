"""Tensors that are no weights, and weights that are no numbers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsedet.checkpoint import (
    CheckpointError,
    describe,
    load_checkpoint,
    load_weights,
    non_finite,
    restore_model,
    save_checkpoint,
)


class Model(nn.Module):
    """Floats, a counter, and a mask that is infinite by design."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def _file(path: Path, **changed: torch.Tensor) -> Path:
    torch.save({"model": Model().state_dict() | changed}, path / "a.pth")
    return path / "a.pth"


def _nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, torch says
        return torch.nested.nested_tensor([torch.ones(4), torch.ones(4)])


def _quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.ones(4, 4).to_sparse(), "a sparse tensor (sparse_coo)"),
        (lambda: torch.ones(4, 4, device="meta"), "without values"),
        (_quantized, "a quantized tensor (qint8)"),
        (_nested, "a nested tensor"),
        (lambda: torch.zeros(1).expand(25_000_000_000), "larger than the whole file"),
    ],
    ids=["sparse", "meta", "quantized", "nested", "expanded"],
)
@pytest.mark.filterwarnings("ignore")  # of torch, about what it calls prototypes
def test_tensors_that_are_no_weights(tmp_path: Path, make, says: str) -> None:
    path = _file(tmp_path, **{"body.bias": make()})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert says in message and "body.bias" in message and str(path) in message


@pytest.mark.filterwarnings("ignore")  # the same
def test_averages_that_are_no_weights(tmp_path: Path) -> None:
    """They are what is evaluated, though the others may be sound."""
    average = {"body.bias": torch.ones(4, 4).to_sparse()}
    torch.save({"model": Model().state_dict(), "ema": {"model": average}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"body\.bias is a sparse tensor"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("body.weight", torch.ones(4, 4, dtype=torch.complex64), "complex64 instead of float32"),
        ("body.weight", torch.ones(4, 4, dtype=torch.int8), "int8 instead of float32"),
        ("body.weight", torch.ones(4, 4, dtype=torch.bool), "bool instead of float32"),
        ("count", torch.tensor(3.5), "float32 instead of int64"),
    ],
)
def test_another_kind_of_numbers(tmp_path: Path, name: str, value: torch.Tensor, says: str) -> None:
    model = Model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"{name} is {says}"):
        load_weights(model, _file(tmp_path, **{name: value}))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_converted_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    model, value = Model(), torch.full((4, 4), 0.5)
    report = load_weights(model, _file(tmp_path, **{"body.weight": value.to(dtype)}))
    assert report.converted == {str(dtype).removeprefix("torch."): 1}
    assert torch.equal(model.body.weight, value)
    assert load_weights(model, _file(tmp_path)).converted == {}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    model, weight = Model(), torch.zeros(4, 4)
    weight[0, :3] = value
    path = _file(tmp_path, **{"body.weight": weight})
    says = r"NaN or infinite: 3 values in 1 tensor \(3 of body\.weight\)"
    with pytest.raises(CheckpointError, match=says):
        load_weights(model, path)
    with pytest.raises(CheckpointError, match=says):
        restore_model(model, load_checkpoint(path)["model"], path)
    assert model.body.weight.isfinite().all()


def test_a_number_too_large_for_the_model(tmp_path: Path) -> None:
    weight = torch.full((4, 4), 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="16 values in 1 tensor"):
        load_weights(Model(), _file(tmp_path, **{"body.weight": weight}))


def test_a_part_alone_is_looked_at_too(tmp_path: Path) -> None:
    state = {"weight": torch.full((4, 4), torch.nan), "bias": torch.zeros(4)}
    save_checkpoint({"model": state}, tmp_path / "a.pth")
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "head": nn.Linear(2, 2)})
    with pytest.raises(CheckpointError, match="16 of weight"):
        load_weights(model, tmp_path / "a.pth")


def test_large_sums_are_no_infinity() -> None:
    values = {"a": torch.full((100,), 3e38), "b": [{"c": torch.tensor([1.0, torch.nan])}, 5, None]}
    assert non_finite(values) == {"b.0.c": 1}
    assert non_finite({"half": torch.full((100,), 6e4, dtype=torch.float16)}) == {}


def test_many_are_counted_and_few_are_named() -> None:
    text = describe({f"w{i}": i + 1 for i in range(5)})
    assert text == "15 values in 5 tensors (1 of w0, 2 of w1, 3 of w2, and 2 more tensors)"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("https://example.org/model.pth", "a URL, and checkpoints are not downloaded"),
        ("s3://bucket/model.pth", "a URL"),
        (5, "must be the path"),
        (["a.pth"], "must be the path"),
        (".", "is a folder"),
        ("/dev/null", "is not a file"),
        ("a" * 300, "cannot be read: File name too long"),
    ],
)
def test_what_is_no_file(path, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(path)


def test_the_entry_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1), "b": 3}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="maps names to tensors; 'b' is int"):
        load_checkpoint(tmp_path / "a.pth")

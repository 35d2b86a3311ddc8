"""``detect`` neither copies between host and device nor waits, so that a CUDA graph can hold it.

The device is a fake one: tensors without numbers that say they are on a GPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparsedet
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import Targets
from sparsedet.registry import SELECTORS
from tests.modeling import glancing, small

DEVICE = torch.device("cuda")
LIBRARY = Path(sparsedet.__file__).parent
CANVAS = (96, 128)
SIZES = {"full": (CANVAS,), "padded": (CANVAS, (70, 100))}


class Crossings(TorchDispatchMode):
    """Where the library calls operators whose tensors are on two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            frames = [f for f in traceback.extract_stack() if LIBRARY in Path(f.filename).parents]
            place = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
            self.places.append(f"{place}{func}")
        return result


def fake_detector(parts: Callable[[], dict], dtype: torch.dtype) -> TokenSparseDetector:
    """Inside of a ``FakeTensorMode``."""
    torch.set_default_dtype(dtype)  # fake modules cannot be cast
    try:
        with DEVICE:
            model = TokenSparseDetector(**parts())
    finally:
        torch.set_default_dtype(torch.float32)
    for tensor in (*model.parameters(), *model.buffers()):
        assert tensor.device.type == DEVICE.type
    return model.eval()


@contextmanager
def recording():
    """As if a CUDA graph were being recorded."""
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
    ):
        yield


def crossings(
    combination: small.Combination, sizes, *, dtype=torch.float32, within=nullcontext
) -> list[str]:
    return crossings_of(lambda: small.parts(combination), sizes, dtype=dtype, within=within)


def crossings_of(
    parts: Callable[[], dict], sizes, *, dtype=torch.float32, within=nullcontext
) -> list[str]:
    with FakeTensorMode(), torch.inference_mode():
        model = fake_detector(parts, dtype)
        images = torch.empty(len(sizes), 3, *CANVAS, device=DEVICE)
        boxes, labels = torch.rand(2, 4, device=DEVICE), torch.ones(2, device=DEVICE).long()
        targets = Targets((boxes,) * len(sizes), (labels,) * len(sizes))
        with within(), Crossings() as found:
            model.detect(images, sizes, targets)
    return found.places


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [("full", torch.float32), ("padded", torch.float32), ("padded", torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("name", small.NAMED)
def test_named_systems_stay_on_the_device(name, dtype, sizes):
    assert crossings(small.NAMED[name], SIZES[sizes], dtype=dtype) == []


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("selector", sorted(each for each, _ in SELECTORS))
def test_selectors_stay_on_the_device_while_a_graph_is_recorded(selector, sizes):
    scorer = "RandomScorer" if SELECTORS.get(selector).needs_scorer else None
    combination = small.Combination(scorer=scorer, selector=selector)
    assert crossings(combination, sizes, within=recording) == []


@pytest.mark.parametrize("scorer", [name for name, _ in small.scorers()])
def test_scorers_stay_on_the_device(scorer):
    terms = {each["scorer"]: each["term"] for each in small.token_choices()}
    combination = small.Combination(scorer=scorer, term=terms[scorer], selector="TopKSelector")
    assert crossings(combination, SIZES["padded"]) == []


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("selector", [None, "ElasticSelector", "AdaptiveSelector", "DenseSelector"])
def test_regions_stay_on_the_device(selector, sizes):
    def parts() -> dict:
        options = glancing.foreground()
        if selector == "DenseSelector":
            options = dict(scorer=None)
        chosen = selector and small.build(SELECTORS.get(selector))
        return glancing.parts("focus", **options, selector=chosen)

    assert crossings_of(parts, sizes, within=recording) == []


def test_an_adaptive_selector_asks_the_device_otherwise():
    combination = small.Combination(scorer="RandomScorer", selector="AdaptiveSelector")
    with pytest.raises(DataDependentOutputException):
        crossings(combination, SIZES["padded"])


COPIES = {
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1, 2]),
    "to the device": lambda x: torch.ones(2).to(x.device, non_blocking=True),
    "from the device": lambda x: x.cpu(),
    "list as index": lambda x: x[[0, 1]],
}
WAITS = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "if": lambda x: bool(x.any()),
    "nonzero": lambda x: x.nonzero(),
    "mask as index": lambda x: x[x > 0],
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_copies_are_seen(copy: Callable[[Tensor], object]):
    with FakeTensorMode():
        x = torch.empty(3, device=DEVICE)
        with Crossings() as found:
            copy(x)
    assert found.places


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waits_are_seen(wait: Callable[[Tensor], object]):
    with FakeTensorMode():
        x = torch.empty(3, device=DEVICE)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            wait(x)

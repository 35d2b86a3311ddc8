"""Small systems that between them have every registered part, and how their exports fare.

python -m tests.export.systems            # a table: system by format
python -m tests.export.systems sparse     # rows whose names have this in them
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from sparsedet.analysis import calibrate_selector
from sparsedet.export import ExportError
from sparsedet.export.check import Differences, compare
from sparsedet.export.contract import Contract
from sparsedet.export.formats import read, write
from sparsedet.export.graph import DeployedDetector, any_size, require_exportable, trace
from sparsedet.modeling import ChannelMapper, TokenSparseDetector
from sparsedet.modeling.parts import CalibratedSelector
from sparsedet.modeling.stages import Size
from sparsedet.registry import SCORERS, SELECTORS
from tests.export.configured import configured
from tests.modeling import glancing, small, test_teacher
from tests.modeling.test_backbone import BACKBONES

SIZE, GLANCED = (64, 96), (200, 304)
FORMATS = ("with the operator", "without it", "ONNX", "any number", "any size")
Outcome = Differences | ExportError


def systems() -> dict[str, Callable[[], TokenSparseDetector]]:
    """The named systems, and others that have the rest of the registered parts."""
    combined = {**small.NAMED, **{str(each): each for each in _others()}}
    made = {name: lambda each=each: small.detector(each) for name, each in combined.items()}
    made |= {f"backbone {name}": lambda name=name: _on(name) for name in BACKBONES}
    for name in glancing.SCORERS:
        made[f"glance {name}"] = lambda name=name: _glancing(name)
    for name, selector in sorted(SELECTORS):
        if selector.needs_scorer:
            made[f"glance {name}"] = lambda part=selector: _glancing("dam", small.build(part))
    return {**made, "teacher": _taught}


def _others() -> Iterator[small.Combination]:
    """Few combinations, so that with the named ones every choice of a part is in one that is not
    refused, if there is such a one."""
    seen = set()
    for refused in (False, True):
        for each in small.pairwise_cover():
            scorer = each.scorer and SCORERS.get(each.scorer)
            if hasattr(scorer, "not_exportable") != refused:
                continue
            own = set(enumerate(astuple(each)))
            if each not in small.NAMED.values() and not own <= seen:
                yield each
            seen |= own


def _on(name: str) -> TokenSparseDetector:
    build, channels = BACKBONES[name]
    neck = ChannelMapper(channels, (8, 16, 32), embed_dim=small.EMBED_DIM)
    given = small.parts(small.NAMED["sparse"])
    return small.randomize(TokenSparseDetector(**{**given, "backbone": build(), "neck": neck}))


def _glancing(scorer: str, selector: torch.nn.Module | None = None) -> TokenSparseDetector:
    model = glancing.detector("dino", selector=selector, **glancing.SCORERS[scorer]())
    if isinstance(selector, CalibratedSelector):
        calibrate_selector(model, [small.samples((GLANCED, (256, 192)), (2, 1))])
    return model


def _taught() -> TokenSparseDetector:
    with tempfile.TemporaryDirectory() as folder:
        return test_teacher.student(test_teacher.save(Path(folder)))


def pictures(model: nn.Module) -> np.ndarray:
    """Two pictures ``[2 3 h w]`` of a size that goes with the model."""
    height, width = SIZE if getattr(model, "regions", None) is None else GLANCED
    return _noise(2, height, width)


def _noise(count: int, height: int, width: int) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(256, size=(count, 3, height, width))
    return drawn.astype(np.float32)


def outcomes(model: nn.Module, formats: tuple[str, ...] = FORMATS) -> dict[str, Outcome]:
    """Each kind of file compared with the model, in this process; or why there is none."""
    try:
        model = deepcopy(require_exportable(model)).eval().requires_grad_(False)
    except ExportError as error:
        return dict.fromkeys(formats, error)
    found: dict[str, Outcome] = {}
    for kinds in (FORMATS[:1], FORMATS[1:3], FORMATS[3:4], FORMATS[4:]):
        kinds = [kind for kind in kinds if kind in formats]
        try:
            program, inputs = _traced(model, kinds[0]) if kinds else (None, [])
            for kind in kinds:
                found[kind] = _compared(model, program, kind, inputs)
        except ExportError as error:
            found = {**dict.fromkeys(kinds, error), **found}
    return found


def _traced(model: TokenSparseDetector, kind: str) -> tuple[ExportedProgram, list[np.ndarray]]:
    """The program of a kind of file, and what it is to be called with."""
    given = pictures(model)
    size, custom_op = (given.shape[2], given.shape[3]), kind not in FORMATS[1:3]
    if kind == "any number":
        return trace(model, size, custom_op=custom_op, dynamic_batch=True), [given, given[:1]]
    if kind == "any size":
        sizes = any_size(model, 64, 10**4)
        least, step = sizes.least, sizes.multiple
        inputs = [_noise(1, least + step, least), _noise(1, least, least + 2 * step)]
        return trace(model, (least, least + step), custom_op=custom_op, sizes=sizes), inputs
    return trace(model, size, custom_op=custom_op), [given[:1], given[1:]]


def _compared(
    model: TokenSparseDetector, program: ExportedProgram, kind: str, inputs: list[np.ndarray]
) -> Differences:
    size = (inputs[0].shape[2], inputs[0].shape[3])
    run = program.module() if kind in FORMATS[3:] else written(program, kind, size)
    with torch.inference_mode():
        got = [[np.asarray(y) for y in run(_as(x, kind))] for x in inputs]
        own = [[y.numpy() for y in DeployedDetector(model)(torch.from_numpy(x))] for x in inputs]
    return compare(got, own, [(x.shape[2], x.shape[3]) for x in inputs])


def _as(x: np.ndarray, kind: str) -> np.ndarray | torch.Tensor:
    return torch.from_numpy(x) if kind in FORMATS[3:] else x


def written(program: ExportedProgram, kind: str, size: Size = SIZE) -> Callable:
    """What runs the file of a program; the rest of its contract is that of all files."""
    contract = Contract(
        size=size, any_size=None, dynamic_batch=False, fill=(0.0, 0.0, 0.0), class_names=("a",),
        score_threshold=0.5, precision="float32", custom_op=False, value_range=None,
        max_pixels=10**6, version="0",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.onnx" if kind == "ONNX" else "a.pt2")
        write(program, path, contract)
        return read(path)[1]


def _cell(outcome: Outcome) -> str:
    if isinstance(outcome, ExportError):
        return f"refused: {outcome}"
    return f"passed ({outcome.boxes:.0e})" if outcome.small else f"differs: {outcome}"


def main(*parts: str) -> None:
    """Print the table."""
    print("| system |", *(f" {name} |" for name in FORMATS))
    print("|---|", *("---|" for _ in FORMATS))
    for name, build in (configured() | systems()).items():
        if parts and not any(part in name for part in parts):
            continue
        torch.manual_seed(0)
        print(f"| {name} |", *(f" {_cell(x)} |" for x in outcomes(build()).values()), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])

"""Export detectors to files that run elsewhere: torch programs or ONNX."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsedet import __version__
from sparsedet.data import PictureSettings
from sparsedet.data.shapes import ShapesOptions, shapes_sample
from sparsedet.export.check import Differences, compare, run_afresh
from sparsedet.export.contract import AnySize, Contract, ExportError
from sparsedet.export.formats import kind_of, require_writer, write
from sparsedet.export.graph import (
    DeployedDetector,
    any_size,
    require_exportable,
    require_size,
    trace,
)
from sparsedet.export.quantize import require_int8
from sparsedet.files import atomic_write, require_writable
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import Size

__all__ = ["AnySize", "Contract", "Differences", "ExportError", "Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """A written file and its comparison with the model.

    Attributes:
        path: the file.
        contract: the contract that is stored in the file.
        megabytes: size of the file.
        compared: number of pictures on which it was compared.
        differences: differences of its outputs from the model's, in a new process.
        rounding: differences of the model's own outputs if pixels change by float32 rounding.
    """

    path: Path
    contract: Contract
    megabytes: float
    compared: int
    differences: Differences
    rounding: Differences

    @property
    def agrees(self) -> bool:
        """Whether the differences are no larger than rounding explains."""
        return self.differences.within(self.rounding)


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    size: Size,
    class_names: Sequence[str],
    pictures: PictureSettings,
    resize: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    score_threshold: float = 0.3,
    half: bool = False,
    custom_op: bool = True,
    quantize: Sequence[np.ndarray] | None = None,
) -> Exported:
    """Export a detector to one file, and compare the file with the model in a new process.

    By default the program takes one picture at a time, of one size. The number of tokens that it
    keeps depends only on the size.

    Args:
        model: a ``TokenSparseDetector`` with its weights; it is not changed.
        path: the file, with the suffix ``.onnx``, ``.pt2`` (a program of ``torch.export``) or
            ``.aoti.pt2`` (a package that AOTInductor compiles for this type of processor).
        size: (h, w) in pixels that pictures are fitted into; with ``resize`` an example.
        class_names: class names in the order of the labels.
        pictures: how picture files are read.
        resize: the short side that pictures are resized to and the limit of the long side; the
            program then takes any size. None = pictures of ``size``.
        dynamic_batch: the program takes any number of pictures of one size at a time.
        score_threshold: default threshold of the file in ``sparsedet predict``.
        half: weights and most of the computation in float16.
        custom_op: call the compiled operator, which needs sparsedet wherever the file runs. False =
            only standard operators, as always in ONNX.
        quantize: pictures ``[1 3 h w]``, float32 in 0..255, as inputs of the program. Linear layers
            and convolutions of an ONNX file are then in int8, calibrated on these pictures, and the
            outputs are compared on two of them.

    Raises:
        ExportError: the model cannot be exported, or the exported program does not run; no file is
            written then.
        ImportError: a package that is needed for ONNX files is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    kind = kind_of(path)
    require_int8(path, quantize, half=half)
    require_writer(kind)
    require_writable(path)
    custom_op = custom_op and kind != "onnx"
    copy = deepcopy(require_exportable(model)).eval().requires_grad_(False)
    sizes = None if resize is None else any_size(copy, *resize)
    require_size(copy, size := size if sizes is None else sizes.canvas(*size))
    contract = Contract(
        size=size if sizes is None else None,
        any_size=sizes,
        dynamic_batch=dynamic_batch,
        fill=_color(copy),
        class_names=tuple(class_names),
        score_threshold=score_threshold,
        precision=_precision(half, quantize),
        custom_op=custom_op,
        value_range=pictures.value_range,
        max_pixels=pictures.max_pixels,
        version=__version__,
    )
    inputs = list(quantize[:2]) if quantize is not None else _inputs(contract, size)
    expected = _answers(copy, inputs)
    program = trace(
        _in_half(copy) if half else copy,
        size,
        custom_op=custom_op,
        dynamic_batch=dynamic_batch,
        sizes=sizes,
    )
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, path.name)
        write(program, draft, contract, quantize)
        got = run_afresh(draft, inputs, kind=kind, custom_op=custom_op, mend=_mend(contract))
        with draft.open("rb") as written, atomic_write(path) as file:
            shutil.copyfileobj(written, file)
    moved = _answers(copy, [_rounded(each) for each in inputs])
    found = [_compared(answers, expected, inputs, contract) for answers in (got, moved)]
    return Exported(path, contract, path.stat().st_size / 1e6, sum(map(len, inputs)), *found)


def _compared(got: Any, expected: Any, inputs: Sequence[np.ndarray], own: Contract) -> Differences:
    least = -1.0 if own.precision == "float32" else own.score_threshold
    return compare(got, expected, [each.shape[2:] for each in inputs], least)


def _rounded(pixels: np.ndarray) -> np.ndarray:
    """Pixels changed by at most two units of float32 precision."""
    noise = np.random.default_rng(0).uniform(-3e-5, 3e-5, pixels.shape)
    return pixels + noise.astype(np.float32)


def _mend(contract: Contract) -> str:
    """Advice for a program that does not run."""
    if contract.any_size is not None:
        return "Leave --dynamic size out, and export a file for each --size."
    if contract.dynamic_batch:
        return "Leave --dynamic batch out."
    return "Choose another file format."


def _precision(half: bool, quantize: Sequence[np.ndarray] | None) -> str:
    if quantize is not None:
        return "int8"
    return "float16" if half else "float32"


def _color(model: TokenSparseDetector) -> tuple[float, float, float]:
    red, green, blue = (float(each) for each in model.pixel_mean.flatten())
    return red, green, blue


def _in_half(model: TokenSparseDetector) -> TokenSparseDetector:
    """A copy with weights in float16; pixels are still normalized in float32."""
    copy = deepcopy(model).to(torch.float16)
    copy.pixel_mean, copy.pixel_std = model.pixel_mean, model.pixel_std
    return copy


def _inputs(contract: Contract, size: Size) -> list[np.ndarray]:
    """Pictures ``[b 3 h w]`` for every way to call a program."""
    first, second, third = _pictures(size, 3)
    inputs = [first[None], second[None]]
    if contract.dynamic_batch:
        inputs.append(np.stack((third, first, second)))
    if contract.any_size is not None:
        least, step = contract.any_size.least, contract.any_size.multiple
        inputs.append(_pictures((least + step, least), 1))
        inputs.append(_pictures((least, least + 2 * step), 1))
    return inputs


def _pictures(size: Size, count: int) -> np.ndarray:
    """Synthetic pictures ``[count 3 h w]``, with textures and camera noise."""
    options = ShapesOptions(size=(max(32, size[0]), max(32, size[1])))
    drawn = [shapes_sample(0, "val", index, options).image for index in range(count)]
    return np.stack([x[: size[0], : size[1]].transpose(2, 0, 1) for x in drawn]).astype(np.float32)


def _answers(model: nn.Module, inputs: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    program = DeployedDetector(model)  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return [[each.numpy() for each in program(torch.from_numpy(x))] for x in inputs]

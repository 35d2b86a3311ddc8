"""Detectors as files that run elsewhere: a program of torch, or ONNX."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

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
    """A file that was written, and how it compares with the model.

    Attributes:
        path: of the file.
        contract: what the file says of itself.
        megabytes: its size.
        compared: pictures that it was compared on.
        differences: of its answers from those of the model, in a new process.
    """

    path: Path
    contract: Contract
    megabytes: float
    compared: int
    differences: Differences


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
    """Write a detector as one file, and compare it with the model in a new process.

    The program takes pictures of one size, one at a time, unless it is told otherwise. How many
    tokens it keeps follows from the size alone.

    Args:
        model: a ``TokenSparseDetector`` with its weights; it stays as it is.
        path: ends in ``.onnx``, in ``.pt2`` (a program of ``torch.export``) or in ``.aoti.pt2`` (a
            package that AOTInductor compiles for processors like this one).
        size: (h, w) in pixels that pictures are fitted into; with ``resize`` an example.
        class_names: in the order of the labels.
        pictures: how picture files are read.
        resize: the short side that pictures are resized to and the limit of the long one: the
            program takes them in any size. None = in ``size``.
        dynamic_batch: the program takes any number of pictures of one size at a time.
        score_threshold: what ``sparsedet predict`` leaves out, unless it is told otherwise.
        half: weights and most of the computation in float16.
        custom_op: call the compiled operator, which needs sparsedet where the file runs. False =
            standard operators alone, as ONNX always has.
        quantize: pictures ``[1 3 h w]``, float32 in 0..255, as the program takes them. With them,
            linear layers and convolutions of an ONNX file are in int8, for values as they have on
            these pictures, and answers are compared on two of these.

    Raises:
        ExportError: the model cannot be exported, or what was exported does not run; no file is
            written then.
        ImportError: what writes ONNX files is not installed.
        OSError: nothing can be written there.
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
    least = -1.0 if contract.precision == "float32" else score_threshold
    differences = compare(got, expected, [x.shape[2:] for x in inputs], least)
    return Exported(path, contract, path.stat().st_size / 1e6, sum(map(len, inputs)), differences)


def _mend(contract: Contract) -> str:
    """What to do where a program does not run."""
    if contract.any_size is not None:
        return "Leave --dynamic size out, and write one file for each --size."
    if contract.dynamic_batch:
        return "Leave --dynamic batch out."
    return "Name a file of another format."


def _precision(half: bool, quantize: Sequence[np.ndarray] | None) -> str:
    if quantize is not None:
        return "int8"
    return "float16" if half else "float32"


def _color(model: TokenSparseDetector) -> tuple[float, float, float]:
    red, green, blue = (float(each) for each in model.pixel_mean.flatten())
    return red, green, blue


def _in_half(model: TokenSparseDetector) -> TokenSparseDetector:
    """A copy with weights in float16; pixels are normalized as before."""
    copy = deepcopy(model).to(torch.float16)
    copy.pixel_mean, copy.pixel_std = model.pixel_mean, model.pixel_std
    return copy


def _inputs(contract: Contract, size: Size) -> list[np.ndarray]:
    """Pictures ``[b 3 h w]`` in each of the ways in which a program may be called."""
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
    """Drawn pictures ``[count 3 h w]``, with textures and the noise of a camera."""
    options = ShapesOptions(size=(max(32, size[0]), max(32, size[1])))
    drawn = [shapes_sample(0, "val", index, options).image for index in range(count)]
    return np.stack([x[: size[0], : size[1]].transpose(2, 0, 1) for x in drawn]).astype(np.float32)


def _answers(model: nn.Module, inputs: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    program = DeployedDetector(model)  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return [[each.numpy() for each in program(torch.from_numpy(x))] for x in inputs]

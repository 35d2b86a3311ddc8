"""Detectors as files that run elsewhere: a program of torch, or ONNX."""

from __future__ import annotations

import os
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
from sparsedet.export.contract import Contract, ExportError
from sparsedet.export.formats import require_onnx, require_suffix, write
from sparsedet.export.graph import DeployedDetector, require_exportable, require_size, trace
from sparsedet.export.quantize import require_int8
from sparsedet.modeling.stages import Size

__all__ = ["Contract", "Differences", "ExportError", "Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it compares with the model.

    Attributes:
        path: of the file.
        contract: what the file says of itself.
        megabytes: its size.
        differences: of its answers from those of the model, in a new process.
    """

    path: Path
    contract: Contract
    megabytes: float
    differences: Differences


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    size: Size,
    class_names: Sequence[str],
    pictures: PictureSettings,
    score_threshold: float = 0.3,
    half: bool = False,
    custom_op: bool = True,
    quantize: Sequence[np.ndarray] | None = None,
) -> Exported:
    """Write a detector as one file, and compare it with the model in a new process.

    The program takes one picture of one size, and the number of tokens that it keeps is fixed.

    Args:
        model: a ``TokenSparseDetector`` with its weights; it stays as it is.
        path: ends in ``.pt2`` or ``.onnx``, which says the format.
        size: (h, w) in pixels that pictures are fitted into.
        class_names: in the order of the labels.
        pictures: how picture files are read.
        score_threshold: what ``sparsedet predict`` leaves out, unless it is told otherwise.
        half: weights and most of the computation in float16.
        custom_op: call the compiled operator, which needs sparsedet where the file runs. False =
            standard operators alone, as ONNX always has.
        quantize: pictures ``[1 3 h w]``, float32 in 0..255, as the program takes them. With them,
            linear layers and convolutions of an ONNX file are in int8, for values as they have on
            these pictures, and answers are compared on two of these.

    Raises:
        ExportError: the model cannot be exported, or the file does not run.
        ImportError: what writes ONNX files is not installed.
    """
    path = Path(path)
    require_suffix(path)
    if quantize is not None:
        require_int8(path, quantize, half=half)
    if path.suffix == ".onnx":
        require_onnx()
        custom_op = False
    copy = deepcopy(require_exportable(model)).eval().requires_grad_(False)
    require_size(copy, size)
    compared = _pictures(size) if quantize is None else np.concatenate(quantize[:2])
    expected = _answers(copy, compared)
    copy = copy.to(torch.float16) if half else copy
    red, green, blue = (float(each) for each in copy.pixel_mean.flatten())
    contract = Contract(
        size=size,
        fill=(red, green, blue),
        class_names=tuple(class_names),
        score_threshold=score_threshold,
        precision="int8" if quantize is not None else "float16" if half else "float32",
        custom_op=custom_op,
        value_range=pictures.value_range,
        max_pixels=pictures.max_pixels,
        version=__version__,
    )
    write(trace(copy, size, custom_op=custom_op), path, contract, quantize)
    got = run_afresh(path, compared, custom_op=custom_op)
    differences = compare(got, expected, size)
    return Exported(path, contract, path.stat().st_size / 1e6, differences)


def _pictures(size: Size) -> np.ndarray:
    """Two drawn pictures ``[2 3 h w]``."""
    options = ShapesOptions(size=(max(32, size[0]), max(32, size[1])))
    drawn = [shapes_sample(0, "val", index, options).image for index in range(2)]
    return np.stack([x[: size[0], : size[1]].transpose(2, 0, 1) for x in drawn]).astype(np.float32)


def _answers(model: nn.Module, pictures: np.ndarray) -> list[list[np.ndarray]]:
    program = DeployedDetector(model)  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return [
            [each.numpy() for each in program(torch.from_numpy(picture[None]))]
            for picture in pictures
        ]

"""An exported detector in place of a model: samples in, instances out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsedet.data import DetectionMapper, PictureSettings
from sparsedet.data.transforms import FitInside
from sparsedet.export.formats import SUFFIXES, read
from sparsedet.modeling.inputs import check_samples, make_instances
from sparsedet.modeling.stages import Size


def is_exported(path: Any) -> bool:
    """Whether a path is that of an exported detector, by its name."""
    return isinstance(path, (str, os.PathLike)) and Path(path).suffix in SUFFIXES


def filled(image: Tensor, size: Size, color: Sequence[float]) -> np.ndarray:
    """A picture at the top left of an input ``[1 3 H W]`` of a program.

    Args:
        image: ``[3 h w]`` in 0..255.
        size: (H, W), at least as large.
        color: RGB of the rest.
    """
    canvas = np.empty((1, 3, *size), dtype=np.float32)
    canvas[0] = np.asarray(color, dtype=np.float32)[:, None, None]
    canvas[0, :, : image.shape[-2], : image.shape[-1]] = image.cpu().numpy()
    return canvas


class ExportedDetector(nn.Module):
    """Runs a file of ``sparsedet export`` as a detector runs, on the CPU.

    Args:
        path: the file; a ``.onnx`` one runs by onnxruntime.

    Attributes:
        contract: what the file says of itself.

    Raises:
        ExportError: the file cannot be read.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.contract, self._run = read(Path(path))

    def mapper(self) -> DetectionMapper:
        """Makes pictures as large as the program takes them."""
        own = self.contract
        pictures = PictureSettings(value_range=own.value_range, max_pixels=own.max_pixels)
        return DetectionMapper([FitInside(own.size)], pictures=pictures)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predict for samples as :meth:`mapper` makes them; see ``TokenSparseDetector.forward``."""
        check_samples(batched_inputs, type(self).__name__)
        return [{"instances": self._detect(sample)} for sample in batched_inputs]

    def _detect(self, sample: Mapping[str, Any]) -> Any:
        image = sample["image"]
        height, width = image.shape[-2:]
        scores, labels, boxes, *_ = map(torch.from_numpy, self._run(self.fill(image)))
        found = scores[0] >= 0
        sides = boxes.new_tensor((width, height, width, height))
        relative = boxes[0][found] / sides
        return make_instances(sample, (height, width), relative, scores[0][found], labels[0][found])

    def fill(self, image: Tensor) -> np.ndarray:
        """A picture at the top left of the program's input ``[1 3 H W]``."""
        return filled(image, self.contract.size, self.contract.fill)

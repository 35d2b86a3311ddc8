"""An exported detector in place of a model: samples in, instances out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsedet.config.naming import first_line
from sparsedet.data import DetectionMapper, PictureSettings
from sparsedet.data.transforms import FitInside, ResizeShortSide
from sparsedet.export import ExportError
from sparsedet.export.formats import read
from sparsedet.modeling.inputs import check_samples, make_instances
from sparsedet.modeling.stages import Size


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
        contract: what the file says about itself.

    Raises:
        ExportError: the file cannot be read, or predicts a label without a class name.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._path = Path(path)
        self.contract, self._run = read(self._path)

    def __reduce__(self) -> tuple[type[ExportedDetector], tuple[Path]]:
        return type(self), (self._path,)  # a session of a runtime cannot be pickled

    def mapper(self) -> DetectionMapper:
        """Makes pictures as large as the program takes them."""
        own, sizes = self.contract, self.contract.any_size
        pictures = PictureSettings(value_range=own.value_range, max_pixels=own.max_pixels)
        if sizes is not None:
            return DetectionMapper(
                [ResizeShortSide(sizes.short_side, sizes.max_size)], pictures=pictures
            )
        assert own.size is not None
        return DetectionMapper([FitInside(own.size)], pictures=pictures)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predict for samples as :meth:`mapper` makes them; see ``TokenSparseDetector.forward``."""
        check_samples(batched_inputs, type(self).__name__)
        inputs = [self.fill(sample["image"]) for sample in batched_inputs]
        if self.contract.dynamic_batch and len({each.shape for each in inputs}) == 1:
            inputs = [np.concatenate(inputs)]
        answers = zip(*map(self._answer, inputs), strict=True)
        rows = zip(*(torch.from_numpy(np.concatenate(each)) for each in answers), strict=True)
        outputs = [
            {"instances": _instances(sample, *row)}
            for sample, row in zip(batched_inputs, rows, strict=True)
        ]
        self._require_names([each["instances"].pred_classes for each in outputs])
        return outputs

    def _answer(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Scores, labels and boxes of pictures.

        Raises:
            ExportError: the program does not run, or gives something else: another tool has
                changed the file.
        """
        try:
            found = self._run(images)[:3]
        except Exception as error:  # errors of the runtimes have no common class
            raise ExportError(
                f"{self._path} does not run ({first_line(error)}). Export the checkpoint again."
            ) from error
        if [each.ndim for each in found] != [2, 2, 3]:
            raise ExportError(
                f"{self._path} does not give scores, labels and boxes. Export the checkpoint again."
            )
        return found

    def _require_names(self, labels: Sequence[Tensor]) -> None:
        """Check that every predicted label has a class name."""
        known = len(self.contract.class_names)
        for label in torch.cat(list(labels)).tolist():
            if not 0 <= label < known:
                raise ExportError(
                    f"{self._path} predicts label {label}, but has only {known} class names "
                    "(labels start at 0). Export the checkpoint again."
                )

    def fill(self, image: Tensor) -> np.ndarray:
        """A picture at the top left of the program's input ``[1 3 H W]``."""
        canvas = self.contract.canvas(image.shape[-2], image.shape[-1])
        return filled(image, canvas, self.contract.fill)


def _instances(sample: Mapping[str, Any], scores: Tensor, labels: Tensor, boxes: Tensor) -> Any:
    """The detections of a picture, which is a part of the program's input."""
    height, width = sample["image"].shape[-2:]
    found = scores >= 0
    relative = boxes[found] / boxes.new_tensor((width, height, width, height))
    return make_instances(sample, (height, width), relative, scores[found], labels[found])

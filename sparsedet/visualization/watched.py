"""Draw the same few pictures after each evaluation during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from sparsedet.data import TestLoader
from sparsedet.modeling import TokenSparseDetector
from sparsedet.visualization.boxes import draw_detections
from sparsedet.visualization.figures import token_figure

_SIDE = 1600  # of a figure, at most, in pixels


class WatchedPictures:
    """Draws detections and kept tokens in some pictures of a loader.

    The pictures are evenly spaced in the data set, so they are the same in every run. They are
    read when they are first drawn.

    Args:
        loader: loader of the validation set. For loaders of other libraries, nothing is drawn.
        count: number of pictures.
        score_threshold: detections with lower scores are left out.
    """

    def __init__(self, loader: Any, *, count: int = 4, score_threshold: float = 0.3) -> None:
        self._loader, self._count, self._threshold = loader, count, score_threshold
        self._samples: dict[str, Mapping[str, Any]] | None = None

    def _read(self) -> dict[str, Mapping[str, Any]]:
        if not isinstance(self._loader, TestLoader):
            return {}
        number = len(self._loader.dataset)
        chosen = sorted({(2 * i + 1) * number // (2 * self._count) for i in range(self._count)})
        return {str(place): self._loader.dataset[k] for place, k in enumerate(chosen, start=1)}

    def __call__(self, model: nn.Module) -> dict[str, np.ndarray]:
        """Draw a figure, uint8 (h, w, 3), of each picture; the model's modes do not change.

        Raises:
            DatasetError: a picture cannot be read.
        """
        if self._samples is None:
            self._samples = self._read()
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.inference_mode():
                return {
                    name: np.asarray(self._draw(model, sample))
                    for name, sample in self._samples.items()
                }
        finally:
            for module, training in modes.items():
                module.training = training

    def _draw(self, model: Any, sample: Mapping[str, Any]) -> Image.Image:
        pixels = sample["image"].permute(1, 2, 0).contiguous().to(torch.uint8)
        picture = Image.fromarray(pixels.cpu().numpy())
        given: dict[str, Any] = dict(
            class_names=self._loader.class_names, score_threshold=self._threshold
        )
        if isinstance(model, TokenSparseDetector):
            batch = model.preprocess([sample])
            output = model.detect(batch.images, batch.image_sizes, batch.targets)
            found = model.postprocess(output, [sample])[0]["instances"].to("cpu")
            figure = token_figure(picture, output, found, **given)
        else:
            found = model([sample])[0]["instances"].to("cpu")
            figure = draw_detections(picture, found, **given)
        figure.thumbnail((_SIDE, _SIDE))
        return figure

"""Convert pictures of all types to RGB pixels and to samples of a detector.

Files are read as in an evaluation: see ``sparsedet.data.images``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsedet.data import DetectionMapper, PictureSettings
from sparsedet.data.images import Shrink, upright_pixels
from sparsedet.modeling.inputs import check_image

__all__ = ["Picture", "PictureSource", "is_picture", "make_sample", "read_picture"]


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: uint8 (3, h, w), RGB. Files above Pillow's limit of 179 million pixels are read at
            a half, a quarter or an eighth of their size if the detector needs no more.
        path: the file of the picture; None for pictures from memory.
        frame: index of the frame in a video, from 0; None for pictures.
        whole_size: (h, w) of the file; None = that of the pixels.
    """

    pixels: Tensor
    path: str | None = None
    frame: int | None = None
    whole_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the whole picture, in whose pixels boxes are given."""
        return self.whole_size or (int(self.pixels.shape[1]), int(self.pixels.shape[2]))

    def to_pillow(self) -> Image.Image:
        """The pixels as a Pillow image."""
        return Image.fromarray(self.pixels.permute(1, 2, 0).contiguous().numpy())


# A path, a Pillow image, an array (h, w, 3) or a tensor (3, h, w): RGB, uint8 or float in 0..255.
PictureSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor | Picture


def is_picture(source: Any) -> TypeGuard[PictureSource]:
    """Whether the source is one picture, or the path of one, rather than several."""
    return isinstance(source, (str, os.PathLike, Image.Image, np.ndarray, Tensor, Picture))


def read_picture(
    source: PictureSource,
    settings: PictureSettings | None = None,
    shrink: Shrink | None = None,
) -> Picture:
    """Decode a picture, or check one in memory.

    Float pictures are rounded to 256 levels, as in an evaluation.

    Args:
        source: a path; a Pillow image; an array (h, w, 3) or a tensor (3, h, w) on any device,
            RGB, uint8 or float in 0..255. Arrays of OpenCV are BGR: pass ``array[..., ::-1]``.
        settings: how files are read; None = the default settings of a config.
        shrink: the factor by which a file may be read smaller, such as `DetectionMapper.shrink`;
            None = full size.

    Raises:
        DatasetError: the file cannot be read.
        StorageError: the file cannot be reached; it may be intact.
        ValueError: wrong type, layout, dtype or range; the message says what to pass instead.
    """
    if isinstance(source, Picture):
        return source
    settings = settings or PictureSettings()
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        pixels, size = upright_pixels(path, settings, shrink)
        return Picture(pixels, path, whole_size=None if pixels.shape[1:] == size else size)
    if isinstance(source, Image.Image):
        if 0 in source.size:
            raise ValueError(f"Predictor.pictures must not be empty, got size {source.size}.")
        if source.mode != "F" or source.format or settings.value_range:
            return Picture(upright_pixels(source, settings)[0])
        source = np.repeat(np.asarray(source)[..., None], 3, axis=2)  # in 0..255, as arrays are
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        check_image(source, "Predictor.pictures")
    elif isinstance(source, np.ndarray):
        source = _from_array(source)
    else:
        raise _wrong_kind(source)
    return Picture(source if source.dtype == torch.uint8 else source.round().to(torch.uint8))


def make_sample(mapper: DetectionMapper, picture: Picture) -> dict[str, Any]:
    """Make the sample that an evaluation would pass to the detector for this picture.

    Args:
        mapper: mapper of the test loader.
        picture: a picture of any size.

    Returns:
        ``image`` (3, h', w') after the mapper's transforms, ``height`` and ``width`` before them.
    """
    no_boxes = torch.zeros(0, 4)
    no_classes = torch.zeros(0, dtype=torch.int64)
    read_smaller = {} if picture.whole_size is None else {"size": picture.size}
    image, *_ = mapper.transform(
        picture.pixels, no_boxes, no_classes, random.Random(0), **read_smaller
    )
    return {"image": image, "height": picture.size[0], "width": picture.size[1]}


def _from_array(array: np.ndarray) -> Tensor:
    name = "Predictor.pictures"
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(
            f"{name} must be arrays (h, w, 3), got shape {array.shape}. {_array_mend(array)}"
        )
    if array.dtype != np.uint8 and array.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"{name} must be uint8 or float arrays, got {array.dtype}. "
            "Pass values in 0..255 as uint8."
        )
    # copy arrays with negative strides (BGR turned to RGB) or read-only memory
    usable = array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C")
    image = torch.from_numpy(usable).permute(2, 0, 1)
    check_image(image, name)
    return image


def _array_mend(array: np.ndarray) -> str:
    if array.size == 0:
        return "It has no pixels."
    if array.ndim == 2:
        return "Repeat a gray picture three times: np.stack([array] * 3, axis=-1)."
    if array.ndim == 4:
        return "Pass a list of pictures: list(array)."
    if array.ndim == 3 and array.shape[2] == 4:
        return "Leave the alpha channel out: array[..., :3]."
    if array.ndim == 3 and array.shape[0] == 3:
        return "Put the channels last: array.transpose(1, 2, 0)."
    return "Pass an RGB picture with the channels last."


def _wrong_kind(source: Any) -> ValueError:
    mend = "Pass a path, a Pillow image, an array (h, w, 3), a tensor (3, h, w), or a list of them."
    if isinstance(source, Mapping):
        mend = "Pass only the picture: sample['image']."
    return ValueError(f"Predictor.pictures must be pictures, got {type(source).__name__}. {mend}")

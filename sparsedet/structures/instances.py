"""Boxes and other per-object fields of one image, in detectron2's vocabulary.

The classes are our own and have the interface of detectron2's, so samples and results need no
conversion in either direction. Code that tests for detectron2's classes with `isinstance` refuses
ours, such as detectron2's `Instances.cat` and `Boxes.cat`;
`sparsedet.interop.detectron2.to_detectron2` converts for it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsedet.structures.boxes import box_area


class Boxes:
    """Boxes of one image.

    Args:
        tensor: (N, 4) corners (xyxy) in pixels; anything `torch.as_tensor` takes. Becomes float.

    Raises:
        ValueError: the shape is not (N, 4).
    """

    def __init__(self, tensor: Any) -> None:
        tensor = torch.as_tensor(tensor)
        if not tensor.is_floating_point():
            tensor = tensor.float()
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.ndim != 2 or tensor.shape[-1] != 4:
            raise ValueError(f"Boxes.tensor must be (N, 4), got shape {tuple(tensor.shape)}.")
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> "Boxes":
        """Copy on another device or in another dtype; arguments as for `Tensor.to`."""
        return Boxes(self.tensor.to(*args, **kwargs))

    def clone(self) -> "Boxes":
        """Copy with its own memory."""
        return Boxes(self.tensor.clone())

    def area(self) -> Tensor:
        """Areas (N,) in square pixels."""
        return box_area(self.tensor)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limits the boxes, in place, to an image of `box_size` = (height, width)."""
        height, width = box_size
        x, y = self.tensor[:, 0::2].clamp(0, width), self.tensor[:, 1::2].clamp(0, height)
        self.tensor = torch.stack((x, y), dim=-1).flatten(1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Mask (N,), True where both sides are longer than `threshold` pixels."""
        size = self.tensor[:, 2:] - self.tensor[:, :2]
        return (size > threshold).all(dim=-1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiplies the coordinates in place."""
        x, y = self.tensor[:, 0::2] * scale_x, self.tensor[:, 1::2] * scale_y
        self.tensor = torch.stack((x, y), dim=-1).flatten(1)

    @staticmethod
    def cat(boxes_list: Sequence["Boxes"]) -> "Boxes":
        """Joins boxes in the given order; an empty list gives no boxes."""
        if not boxes_list:
            return Boxes(torch.zeros(0, 4))
        return Boxes(torch.cat([boxes.tensor for boxes in boxes_list]))

    @property
    def device(self) -> torch.device:
        """Device of the tensor."""
        return self.tensor.device

    def __getitem__(self, item: Any) -> "Boxes":
        """Boxes chosen by an int, a slice, a mask or indices; the result is always `Boxes`."""
        if isinstance(item, int):
            return Boxes(self.tensor[item][None])
        return Boxes(self.tensor[item])

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.tensor.detach().cpu().numpy()
        if copy:
            array = array.copy()
        return array if dtype is None else array.astype(dtype)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


class Instances:
    """Fields of equal length that describe the objects of one image.

    Fields are read and set as attributes: `gt_boxes` and `gt_classes` of a sample, `pred_boxes`,
    `scores` and `pred_classes` of a result. Boxes are corners in pixels of `image_size`.

    `Instances.cat` joins instances of this class only, and detectron2's joins only its own. Join
    first, then convert with `sparsedet.interop.detectron2.to_detectron2`.

    Args:
        image_size: (height, width) of the image that the boxes belong to.
        **fields: initial fields, all of the same length.

    >>> found = Instances((4, 6), scores=torch.tensor([0.9, 0.2]))
    >>> len(found[found.scores > 0.5])
    1
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        object.__setattr__(self, "_image_size", (int(image_size[0]), int(image_size[1])))
        object.__setattr__(self, "_fields", {})
        for name, value in fields.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            known = "" if name.startswith("_") else f" It has {sorted(self._fields)}."
            raise AttributeError(f"Instances has no field '{name}'.{known}")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Sets a field.

        Raises:
            ValueError: its length differs from that of the other fields.
        """
        if self._fields and len(value) != len(self):
            raise ValueError(
                f"Instances.{name} must have length {len(self)} like {sorted(self._fields)}, "
                f"got {len(value)}."
            )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether the field exists."""
        return name in self._fields

    def get(self, name: str) -> Any:
        """Field by name; KeyError if it does not exist."""
        return self._fields[name]

    def remove(self, name: str) -> None:
        """Deletes a field; KeyError if it does not exist."""
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The dict of fields itself."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Copy with every field that has a `to` method moved; arguments as for `Tensor.to`."""
        moved = Instances(self.image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: Any) -> "Instances":
        """Objects chosen by an int, a slice, a mask (N,) or indices.

        Raises:
            IndexError: an int is out of range.
        """
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"Instances index {item} is out of range for {len(self)} objects.")
            item = slice(item, item + 1 if item != -1 else None)
        chosen = Instances(self.image_size)
        for name, value in self._fields.items():
            chosen.set(name, _index(value, item))
        return chosen

    @staticmethod
    def cat(instances: Sequence["Instances"]) -> "Instances":
        """Joins instances of one image size that have the same fields.

        Raises:
            ValueError: the list is empty, or image sizes or fields differ.
        """
        if not instances:
            raise ValueError("Instances.cat needs at least one Instances, got an empty list.")
        first = instances[0]
        for other in instances[1:]:
            if other.image_size != first.image_size or set(other._fields) != set(first._fields):
                raise ValueError(
                    "Instances.cat needs equal image sizes and fields, got "
                    f"{first.image_size} {sorted(first._fields)} and "
                    f"{other.image_size} {sorted(other._fields)}."
                )
        joined = Instances(first.image_size)
        for name in first._fields:
            joined.set(name, _cat([part.get(name) for part in instances]))
        return joined

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        return 0

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"Instances(num_instances={len(self)}, image_size={self.image_size}, {fields})"


def _index(value: Any, item: Any) -> Any:
    if not isinstance(value, (list, tuple)) or isinstance(item, slice):
        return value[item]
    places = torch.as_tensor(item)
    if places.dtype == torch.bool:
        places = places.nonzero().flatten()
    return type(value)(value[int(i)] for i in places)


def _cat(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, (list, tuple)):
        return type(first)(item for value in values for item in value)
    return type(first).cat(values)

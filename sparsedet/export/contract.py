"""What has to be known of an exported detector beside its weights; it is stored in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sparsedet.modeling.stages import Size

KEY = "sparsedet.json"
"""Under which name the facts are stored in the file."""
OUTPUTS = ("scores", "labels", "boxes", "kept_tokens")
CONTRACT = 1
"""Number of the form of these facts; files with a higher one need a newer sparsedet."""
_INPUT = "RGB, float32 in 0..255; the program normalizes"
_FIT = (
    "the largest size that fits inside of `size` with the aspect kept, bilinear with antialiasing, "
    "at the top left; the rest is filled with `fill`"
)
_SHORT_SIDE = (
    "the short side becomes any_size.short_side, or less where the long one would exceed "
    "any_size.max_size, bilinear with antialiasing; then height and width are filled up with `fill`"
    " at the bottom and right to multiples of any_size.multiple, at least any_size.least"
)


class ExportError(ValueError):
    """A detector that cannot be exported, or a file that is no exported detector."""


@dataclass(frozen=True)
class AnySize:
    """How a picture gets the size in which a program takes it that takes several.

    Attributes:
        short_side: pixels that the short side is resized to.
        max_size: upper limit of the long side in pixels.
        multiple: both sides of the input are multiples of this number of pixels.
        least: the fewest pixels that a side of the input has.
    """

    short_side: int
    max_size: int
    multiple: int
    least: int

    def canvas(self, height: int, width: int) -> Size:
        """(H, W) of the input that a resized picture is filled up to."""
        rows, columns = (
            max(self.least, -(-side // self.multiple) * self.multiple) for side in (height, width)
        )
        return rows, columns


@dataclass(frozen=True)
class Contract:
    """How to call an exported detector, and what its answer means.

    Attributes:
        size: (h, w) in pixels of the pictures that the program takes; None = ``any_size``.
        any_size: set where it takes pictures of any height and width.
        dynamic_batch: it takes any number of pictures at a time; otherwise one.
        fill: RGB in 0..255 of what a picture does not cover.
        class_names: in the order of the labels.
        score_threshold: below which detections are left out, unless something else is asked for.
        precision: format of the weights, such as "float32".
        custom_op: the program calls ``torch.ops.sparsedet.ms_deform_attn``.
        value_range: of `PictureSettings`.
        max_pixels: of `PictureSettings`.
        version: of sparsedet.
    """

    size: Size | None
    any_size: AnySize | None
    dynamic_batch: bool
    fill: tuple[float, float, float]
    class_names: tuple[str, ...]
    score_threshold: float
    precision: str
    custom_op: bool
    value_range: tuple[float, float] | None
    max_pixels: int
    version: str

    def canvas(self, height: int, width: int) -> Size:
        """(H, W) of the input in which a resized picture lies."""
        if self.any_size is not None:
            return self.any_size.canvas(height, width)
        assert self.size is not None
        return self.size

    def to_json(self) -> str:
        """The facts with words for who has no sparsedet."""
        height, width = self.size or ("height", "width")
        batch = "n" if self.dynamic_batch else 1
        words = {
            "contract": CONTRACT,
            "input": f"{batch} x 3 x {height} x {width}, {_INPUT}",
            "resize": _FIT if self.any_size is None else _SHORT_SIDE,
            "outputs": list(OUTPUTS),
            "boxes": "x1, y1, x2, y2 in pixels of the input; entries with a score of -1 are none",
        }
        return json.dumps(asdict(self) | words, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes | None, path: str) -> Contract:
        """Read what :meth:`to_json` wrote.

        Args:
            text: None where a file has no such part.
            path: of the file, for the message.

        Raises:
            ExportError: it was not written by an export, or by that of a newer sparsedet.
        """
        try:
            read: Mapping[str, Any] = json.loads(text or "")
            number = int(read["contract"])
            if number > CONTRACT:
                raise ExportError(
                    f"{path} was exported by sparsedet {read.get('version')} and says in a newer "
                    f"form how it is to be called ({number}, this one reads {CONTRACT}). Update "
                    "sparsedet, or export the checkpoint again."
                )
            given = {field.name: _hashable(read[field.name]) for field in fields(cls)}
            if given["any_size"] is not None:
                given["any_size"] = AnySize(**given["any_size"])
        except ExportError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(
                f"{path} does not say how it is to be called, as a file of `sparsedet export` "
                "does. Export the checkpoint again."
            ) from error
        return cls(**given)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

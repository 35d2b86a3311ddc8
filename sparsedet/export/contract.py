"""The contract of an exported detector: how to call it. It is stored in the exported file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sparsedet.config.kinds import wrong_kind
from sparsedet.modeling.stages import Size

KEY = "sparsedet.json"
"""Name of the contract in the file."""
OUTPUTS = ("scores", "labels", "boxes", "kept_tokens")
CONTRACT = 1
"""Version of the contract's format; files with a higher one need a newer sparsedet."""
_INPUT = "RGB, float32 in 0..255; the program normalizes"
_PIXELS = ("short_side", "max_size", "multiple", "least", "max_pixels")
_FIT = (
    "to the largest size that fits inside `size` with the same aspect ratio, bilinear with "
    "antialiasing, at the top left; the rest is filled with `fill`"
)
_SHORT_SIDE = (
    "the short side to any_size.short_side, or less if the long side would exceed "
    "any_size.max_size, bilinear with antialiasing; then padded with `fill` at the bottom and right"
    " to multiples of any_size.multiple, at least any_size.least"
)


class ExportError(ValueError):
    """A detector cannot be exported, or a file is not an exported detector."""


@dataclass(frozen=True)
class AnySize:
    """How to resize and pad pictures for a program that takes several sizes.

    Attributes:
        short_side: pixels that the short side is resized to.
        max_size: upper limit of the long side in pixels.
        multiple: both sides of the input are multiples of this number of pixels.
        least: smallest side of the input in pixels.
    """

    short_side: int
    max_size: int
    multiple: int
    least: int

    def canvas(self, height: int, width: int) -> Size:
        """(H, W) of the input to which a resized picture is padded."""
        rows, columns = (
            max(self.least, -(-side // self.multiple) * self.multiple) for side in (height, width)
        )
        return rows, columns


@dataclass(frozen=True)
class Contract:
    """How to call an exported detector, and what its outputs mean.

    Attributes:
        size: (h, w) in pixels of the program's input; None = see ``any_size``.
        any_size: set if the program takes pictures of any height and width.
        dynamic_batch: the program takes any number of pictures at a time; otherwise one.
        fill: RGB in 0..255 of the padding.
        class_names: class names in the order of the labels.
        score_threshold: default threshold below which detections are left out.
        precision: type of the weights, such as "float32".
        custom_op: the program calls ``torch.ops.sparsedet.ms_deform_attn``.
        value_range: see `PictureSettings`.
        max_pixels: see `PictureSettings`.
        version: version of sparsedet that exported the file.
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
        """(H, W) of the input that contains a resized picture."""
        if self.any_size is not None:
            return self.any_size.canvas(height, width)
        assert self.size is not None
        return self.size

    def to_json(self) -> str:
        """The contract as JSON, with descriptions for users without sparsedet."""
        height, width = self.size or ("height", "width")
        batch = "n" if self.dynamic_batch else 1
        words = {
            "contract": CONTRACT,
            "input": f"{batch} x 3 x {height} x {width}, {_INPUT}",
            "resize": _FIT if self.any_size is None else _SHORT_SIDE,
            "outputs": list(OUTPUTS),
            "boxes": "x1, y1, x2, y2 in pixels of the input; a score of -1 marks unused entries",
        }
        return json.dumps(asdict(self) | words, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes | None, path: str) -> Contract:
        """Read the JSON of :meth:`to_json`.

        Args:
            text: the JSON; None if the file has none.
            path: path of the file, for the message.

        Raises:
            ExportError: the file was not written by an export, or by a newer sparsedet.
        """
        try:
            read: Mapping[str, Any] = json.loads(text or "")
            number = read["contract"]
            if type(number) is not int or number < 1:
                raise ValueError(number)
            if number > CONTRACT:
                raise ExportError(
                    f"{path} was exported by sparsedet {read.get('version')} with contract version "
                    f"{number}, but this sparsedet reads only up to {CONTRACT}. Update sparsedet, "
                    "or export the checkpoint again."
                )
            given = {field.name: _hashable(read[field.name]) for field in fields(cls)}
            if (given["any_size"] is None) == (given["size"] is None):
                raise ValueError("one of size and any_size is set")
            if given["any_size"] is not None:
                _require_valid(AnySize, given["any_size"], path)
                given["any_size"] = AnySize(**given["any_size"])
            _require_valid(cls, given, path)
        except ExportError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(
                f"{path} has no valid contract, which `sparsedet export` stores. Export the "
                "checkpoint again."
            ) from error
        return cls(**given)


def _require_valid(made: type, given: Mapping[str, Any], path: str) -> None:
    """Check the values of a contract, which nothing that uses them checks.

    Raises:
        ExportError: one is of another kind, or out of range.
    """
    wrong = wrong_kind(made, given)
    said = wrong.sentence if wrong is not None else _out_of_range(given)
    if said:
        raise ExportError(f"{path} has a damaged contract: {said}. Export the checkpoint again.")


def _out_of_range(given: Mapping[str, Any]) -> str:
    """What is wrong with values of the right kinds; empty if nothing is."""
    pixels = [*(given.get("size") or ()), *(given[key] for key in _PIXELS if key in given)]
    if min(pixels) < 1:
        return f"numbers of pixels must be at least 1, got {min(pixels)}"
    score = given.get("score_threshold", 0.0)
    if not 0 <= score <= 1:
        return f"score_threshold must be in [0, 1], got {score}"
    black, white = given.get("value_range") or (0, 1)
    return "" if black < white else f"value_range must ascend, got {black} and {white}"


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

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
_LAYOUT = "1 x 3 x height x width, RGB, float32 in 0..255; the program normalizes"
_RESIZE = (
    "the largest size that fits inside of `size` with the aspect kept, bilinear with antialiasing, "
    "at the top left; the rest is filled with `fill`"
)


class ExportError(ValueError):
    """A detector that cannot be exported, or a file that is no exported detector."""


@dataclass(frozen=True)
class Contract:
    """How to call an exported detector, and what its answer means.

    Attributes:
        size: (h, w) in pixels of the pictures that the program takes.
        fill: RGB in 0..255 of what a picture does not cover.
        class_names: in the order of the labels.
        score_threshold: below which detections are left out, unless something else is asked for.
        precision: format of the weights, such as "float32".
        custom_op: the program calls ``torch.ops.sparsedet.ms_deform_attn``.
        value_range: of `PictureSettings`.
        max_pixels: of `PictureSettings`.
        version: of sparsedet.
    """

    size: Size
    fill: tuple[float, float, float]
    class_names: tuple[str, ...]
    score_threshold: float
    precision: str
    custom_op: bool
    value_range: tuple[float, float] | None
    max_pixels: int
    version: str

    def to_json(self) -> str:
        """The facts with words for who has no sparsedet."""
        words = {"input": _LAYOUT, "resize": _RESIZE, "outputs": list(OUTPUTS)}
        words["boxes"] = (
            "x1, y1, x2, y2 in pixels of the input; entries with a score of -1 are none"
        )
        return json.dumps(asdict(self) | words, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes | None, path: str) -> Contract:
        """Read what :meth:`to_json` wrote.

        Args:
            text: None where a file has no such part.
            path: of the file, for the message.

        Raises:
            ExportError: it was not written by an export.
        """
        try:
            read: Mapping[str, Any] = json.loads(text or "")
            given = {field.name: _hashable(read[field.name]) for field in fields(cls)}
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(
                f"{path} does not say how it is to be called, as a file of `sparsedet export` "
                "does. Export the checkpoint again."
            ) from error
        return cls(**given)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

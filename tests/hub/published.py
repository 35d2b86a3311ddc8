"""What the tests of published folders share."""

from __future__ import annotations

from pathlib import Path

BEST = "model_best.pth"


def change(path: Path, old: str, new: str) -> None:
    """Replace words of a file, which must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

"""Config files for a test."""

from __future__ import annotations

import textwrap
from pathlib import Path


def write(folder: Path, **files: str) -> Path:
    """Write ``name.py`` for each text, ``a__b`` as ``a/b.py``; return the folder."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder

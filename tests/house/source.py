"""The source files of the repository, as the rules of the house look at them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "sparsedet"

TEXT = {".py", ".md", ".toml", ".cfg", ".yaml", ".yml", ".json", ".h", ".cpp", ".cu", ".cuh", ""}
GUESTS = ROOT / "projects/interop"  # configs that load where their guest is: tests/interop does
BASELINES = ROOT / "projects/torchvision_detectors"  # tests/projects/test_torchvision.py does
UNPUBLISHED = ROOT / "projects/large_images"  # configs of this package, which no paper has
LINKS = {("sparsedet", "configs"), ("sparsedet", "projects")}
OUTSIDE = {".git", ".venv", "build", "dist", "site"}
OUTSIDE |= {"output", "outputs", "data", "datasets", "weights"}


def files(*folders: str, suffix: str = ".py") -> list[Path]:
    """Files with this suffix under folders of the repository; links are not followed twice."""
    found: list[Path] = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob(f"*{suffix}")):
            inside = path.relative_to(ROOT)
            if "__pycache__" not in inside.parts and inside.parts[:2] not in LINKS:
                found.append(path)
    return found


def text_files() -> list[Path]:
    """Every text file that belongs to the repository."""
    top = [path for path in ROOT.iterdir() if path.name not in OUTSIDE]
    found = [path for path in top if path.is_file()]
    for folder in (path for path in top if path.is_dir() and not path.name.startswith(".")):
        found += [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    skipped = ("__pycache__", ".egg-info")
    return sorted(
        path
        for path in found
        if path.suffix in TEXT and not any(part.endswith(skipped) for part in path.parts)
    )


def name(path: Path) -> str:
    """How a file is called in messages and test ids."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def module_of(path: Path) -> list[str]:
    """Dotted module name of a library file, in parts."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path, *, relative: bool = True) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that a file imports.

    Args:
        path: the file.
        relative: whether relative imports count.
    """
    package = module_of(path) if path.stem == "__init__" else module_of(path)[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and (relative or not node.level):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])

"""Builds and installations as a user makes them, from a copy of the repository's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "MANIFEST.in", "csrc")
FOLDERS = ("sparsedet", "configs", "projects")
BUILD = "from setuptools.build_meta import build_{kind} as build; build({folder!r})"
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}


def copy_source(folder: Path) -> Path:
    """Copy what a build needs, so that it leaves nothing in the repository."""
    ignored = shutil.ignore_patterns("*.so", "_kernels.json", "__pycache__")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def build(kind: str, source: Path, target: Path, **variables: str) -> Path:
    """Build a wheel or an sdist, without CUDA unless the variables ask for it."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, folder=str(target))],
        cwd=source,
        env=os.environ | {"SPARSEDET_BUILD_CUDA": "0"} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    return made


class Environment:
    """A virtual environment that has the packages of this one, but not sparsedet.

    Its commands find programs of the environment alone: no compiler, no nvcc.
    """

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.bin = folder / "bin"
        packages = sysconfig.get_paths(vars={"base": str(folder)})["purelib"]
        # not folders of packages to that Python: it leaves editable installations out
        outside = [
            each for each in sys.path if Path(each).name in ("site-packages", "dist-packages")
        ]
        Path(packages, "outside.pth").write_text("\n".join(outside))

    def run(
        self, *words: str | Path, cwd: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder."""
        clean = {"PATH": str(self.bin), "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [self.bin / words[0], *words[1:]],
            cwd=cwd,
            env=clean | dict(variables or {}),
            capture_output=True,
            text=True,
        )

    def install(self, what: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Install a wheel or a folder with sources, and nothing else."""
        words = [
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--force-reinstall",
            "--verbose",
        ]
        return self.run(
            "python", "-m", "pip", "install", *words, what, cwd=self.bin, variables=variables
        )

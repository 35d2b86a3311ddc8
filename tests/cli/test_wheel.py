"""What a wheel carries, and that the command works from it outside of a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sparsedet.config import packaged_configs

NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "MANIFEST.in", "csrc")
FOLDERS = ("sparsedet", "configs", "projects")
BUILD = "from setuptools.build_meta import build_{kind} as build; build({folder!r})"


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs, so that it leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in FOLDERS:
        shutil.copytree(root / name, folder / name, symlinks=True, ignore=ignored)
    for name in NEEDED:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, folder / name)
    return folder


def build(kind: str, source: Path, target: Path) -> Path:
    """A wheel or sdist without kernels, which would take a minute to compile."""
    environment = os.environ | {"SPARSEDET_BUILD_CUDA": "0", "CXX": "/bin/false"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind, folder=str(target))],
        cwd=source,
        env=environment | {"CC": "/bin/false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from with what the wheel holds."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_has_every_config_and_is_small(root: Path, wheel: Path) -> None:
    names = names_in(wheel)
    configs = {*root.glob("configs/**/*.py"), *root.glob("projects/*/configs/**/*.py")}
    assert len(configs) > 80
    assert {f"sparsedet/{path.relative_to(root).as_posix()}" for path in configs} <= names
    assert {f"sparsedet/{path.relative_to(root / 'sparsedet').as_posix()}"
            for path in (root / "sparsedet/benchmark").glob("*")
            if path.suffix in (".py", ".cu")} <= names  # fmt: skip
    assert "sparsedet/configs/index.json" in names
    assert not [name for name in names if name.endswith((".md", "results.json", ".png"))]
    assert not [name for name in names if name.startswith(("tests", "tools", "projects"))]
    assert wheel.stat().st_size < 2_000_000


def test_a_wheel_from_the_sdist_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source, tmp_path / "sdist")
    assert sdist.stat().st_size < 2_000_000
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", unpacked, tmp_path / "wheel")
    assert names_in(again) == names_in(wheel)


def command(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "sparsedet", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_installed_command_finds_its_configs(installed: Path, tmp_path: Path) -> None:
    listed = command(installed, tmp_path, "configs")
    assert listed.returncode == 0, listed.stderr
    shown = {name for name in packaged_configs() if f" {name} " in listed.stdout}
    assert shown == set(packaged_configs())
    place = "import sparsedet, sys; sys.stdout.write(sparsedet.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", place],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert Path(done.stdout).is_relative_to(installed)
    for config in ("focus_detr_r50_12ep", "projects/focus_detr/configs/focus_detr_r50_12ep.py"):
        done = command(installed, tmp_path, "train", config, "model.selectr=1")
        assert done.returncode == 2 and "Nearest: model.selector" in done.stderr
    # one that is made of others, in other folders
    done = command(installed, tmp_path, "train", "focus_detr_dino_sparse_dual_36ep")
    assert done.returncode == 2
    assert "datasets/coco" in done.stderr and "No such file" in done.stderr
    assert not list(tmp_path.iterdir())

"""What a wheel carries, and that the command works from it outside of a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from sysconfig import get_platform

import pytest

from sparsedet.config import packaged_configs
from tests.packaging.builds import NO_COMPILER, build, copy_source

NO_KERNELS = {"SPARSEDET_BUILD_CPU": "0"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"), **NO_KERNELS)


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
    data = {"configs/index.json", "weights/published.json", "py.typed"}
    assets = [path for path in (root / "sparsedet/report/assets").rglob("*") if path.is_file()]
    data |= {path.relative_to(root / "sparsedet").as_posix() for path in assets}
    assert {f"sparsedet/{name}" for name in data} <= names
    assert not [name for name in names if name.endswith((".md", "results.json", ".png"))]
    assert not [name for name in names if name.startswith(("tests", "tools", "projects"))]
    assert wheel.stat().st_size < 2_000_000


def test_a_wheel_without_kernels_is_for_every_system(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names_in(wheel) if "_C_" in name or "_kernels" in name]


def test_a_wheel_says_why_it_has_no_kernels(source: Path, tmp_path: Path) -> None:
    """And it does not take those that an earlier build left."""
    stale = Path(f"build/lib.{get_platform()}-{sys.implementation.cache_tag}/sparsedet")
    (source / stale).mkdir(parents=True)
    for name in ("_C_cpu.abi3.so", "_C_cuda.abi3.so"):
        (source / stale / name).touch()
    made = build("wheel", source, tmp_path, **NO_COMPILER)
    assert "-cp310-abi3-" in made.name
    with zipfile.ZipFile(made) as archive:
        assert not [name for name in archive.namelist() if "_C_" in name]
        record = json.loads(archive.read("sparsedet/_kernels.json"))
    assert record == {"CPU": {"left_out": "/bin/false failed: it said nothing"}}


def test_a_wheel_from_the_sdist_is_the_same(
    root: Path, source: Path, wheel: Path, tmp_path: Path
) -> None:
    (source / "tests").mkdir()
    (source / "tests/test_any.py").touch()
    sdist = build("sdist", source, tmp_path / "sdist")
    assert sdist.stat().st_size < 2_000_000
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.relative_to(root).as_posix() for path in root.glob("csrc/**/*.*")} <= inside
    assert not [name for name in inside if name.startswith("tests")]
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", unpacked, tmp_path / "wheel", **NO_KERNELS)
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

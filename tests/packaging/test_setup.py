"""What setup.py decides: which kernels, with which tools, and what it says of those left out."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.scripts import load_script

VERSION_FILE = """\
__version__ = '{version}'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'abc'
hip: Optional[str] = None
"""


@pytest.fixture(scope="module")
def setup(root: Path) -> ModuleType:
    return load_script(root / "setup.py")


@pytest.fixture
def put_torch(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pretend that a torch of these versions is the one installed."""

    def put(version: str, cuda: str | None):
        folder = tmp_path / "site/torch"
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        (folder / "version.py").write_text(VERSION_FILE.format(version=version, cuda=repr(cuda)))
        if cuda:
            (folder / "lib/libtorch_cuda.so").touch()
        spec = ModuleSpec("torch", None, origin=str(folder / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        return setup.Torch()

    return put


@pytest.fixture
def put_nvcc(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program in place of nvcc, on a machine that has no other."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(setup, "TOOLKIT", str(tmp_path / "toolkit/nvcc"))

    def put(place: str, release: str) -> str:
        path = tmp_path / place / "nvcc"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"Cuda compilation tools, release {release}, V{release}.88"
        path.write_text(f"#!/bin/sh\necho 'nvcc: NVIDIA (R)'\necho '{text}'\n")
        path.chmod(0o755)
        return str(path)

    return put


@pytest.mark.parametrize("kind", ["CPU", "CUDA"])
def test_the_wish_is_read_from_the_environment(setup, kind, monkeypatch):
    monkeypatch.delenv(f"SPARSEDET_BUILD_{kind}", raising=False)
    assert setup.wish(kind) == "auto"
    for value in ("auto", "0", "1"):
        monkeypatch.setenv(f"SPARSEDET_BUILD_{kind}", value)
        assert setup.wish(kind) == value
    monkeypatch.setenv(f"SPARSEDET_BUILD_{kind}", "yes")
    with pytest.raises(SystemExit, match=f"SPARSEDET_BUILD_{kind} must be auto, 0 or 1, got 'yes'"):
        setup.wish(kind)


def test_what_a_platform_can_build(setup):
    setup.check_platform("CPU", "linux")
    setup.check_platform("CUDA", "linux")
    setup.check_platform("CPU", "darwin")
    for kind, platform, why in (
        ("CUDA", "darwin", "on Linux and Windows alone"),
        ("CPU", "win32", "MSVC"),
        ("CUDA", "win32", "MSVC"),
    ):
        with pytest.raises(setup.CannotBuild, match=why):
            setup.check_platform(kind, platform)


def test_versions_of_torch_are_read_without_importing_it(setup, put_torch, tmp_path):
    torch = put_torch("2.14.1+cu130", "13.0")
    assert (torch.version, torch.cuda) == ("2.14.1+cu130", "13.0")
    assert torch.include == tmp_path / "site/torch/include"
    assert torch.nvidia == tmp_path / "site/nvidia/cu13"
    assert put_torch("2.10.0+cpu", None).cuda is None
    with pytest.raises(setup.CannotBuild, match=r"torch 2\.9\.1 is older than 2\.10"):
        put_torch("2.9.1", "12.8")


def test_no_torch(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(setup.CannotBuild, match="torch is not installed"):
        setup.Torch()


def test_the_version_names_cuda(setup, put_torch):
    assert setup.local_version(put_torch("2.14.1+cu130", "13.0")) == "+cu130"
    assert setup.local_version(put_torch("2.10.0", "12.8")) == "+cu128"
    with pytest.raises(setup.CannotBuild, match="has no CUDA"):
        setup.local_version(put_torch("2.10.0+cpu", None))


def test_the_nvcc_of_the_cuda_of_torch_is_taken(setup, put_torch, put_nvcc, monkeypatch, tmp_path):
    torch = put_torch("2.14.1+cu130", "13.0")
    with pytest.raises(setup.CannotBuild, match="no nvcc was found; set CUDA_HOME"):
        setup.find_nvcc(torch)
    old = put_nvcc("path", "12.8")
    with pytest.raises(setup.CannotBuild, match=rf"{old} is of CUDA 12, torch of CUDA 13\.0"):
        setup.find_nvcc(torch)
    packaged = put_nvcc("site/nvidia/cu13/bin", "13.2")
    assert setup.find_nvcc(torch) == packaged
    toolkit = put_nvcc("toolkit", "13.0")
    assert setup.find_nvcc(torch) == toolkit
    put_nvcc("own/bin", "12.9")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "own"))  # then no other is looked for
    with pytest.raises(setup.CannotBuild, match="own/bin/nvcc is of CUDA 12"):
        setup.find_nvcc(torch)
    with pytest.raises(setup.CannotBuild, match=r"torch 2\.14\.1\+cpu has no CUDA"):
        setup.find_nvcc(put_torch("2.14.1+cpu", None))


def test_the_packaged_runtime_is_linked_by_the_name_that_a_linker_looks_for(setup, tmp_path):
    (tmp_path / "nvidia/lib").mkdir(parents=True)
    (tmp_path / "nvidia/lib/libcudart.so.13").touch()
    command = SimpleNamespace(build_temp=str(tmp_path / "temp"))
    for _ in range(2):
        folder = setup.BuildLibraries.link_runtime(
            command, SimpleNamespace(nvidia=tmp_path / "nvidia")
        )
    assert os.readlink(folder / "libcudart.so") == str(tmp_path / "nvidia/lib/libcudart.so.13")


def test_architectures_become_flags(setup):
    assert setup.architecture_flags("8.0;9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert setup.architecture_flags(" 7.5 8.6, 12.0 ") == [
        f"-gencode=arch=compute_{number},code=sm_{number}" for number in (75, 86, 120)
    ]


GCC = """\
In file included from csrc/cpu/ms_deform_attn.cpp:11:
csrc/cpu/../arguments.h:14:10: fatal error: torch/csrc/stable/macros.h: No such file or directory
   14 | #include <torch/csrc/stable/macros.h>
      |          ^~~~~~~~~~~~~~~~~~~~~~~~~~~~
compilation terminated.
"""
LINKER = """\
/usr/bin/ld: cannot find -ltorch_cpu: No such file or directory
collect2: error: ld returned 1 exit status
"""


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (GCC, "csrc/cpu/../arguments.h:14:10: fatal error: torch/csrc/stable/macros.h: No such"),
        (LINKER, "/usr/bin/ld: cannot find -ltorch_cpu"),
        ("a warning\n\nnvcc fatal   : Unsupported gpu architecture\n\n", "nvcc fatal   : Unsup"),
        ("", "it said nothing"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_the_telling_line_of_a_compiler(setup, output, told):
    found = setup.first_error(output)
    assert found.startswith(told)
    assert "\n" not in found and len(found) <= 300


def test_what_an_earlier_build_left_is_removed(setup, tmp_path):
    kept = tmp_path / "__init__.py"
    for name in ("_C_cpu.abi3.so", "_C_cuda.abi3.so", "_kernels.json", "__init__.py"):
        (tmp_path / name).touch()
    setup.remove_built(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]

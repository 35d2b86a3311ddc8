"""Builds the compiled kernels; all other metadata is in pyproject.toml.

Two libraries, since one that is linked to CUDA does not load where torch has none:
``sparsedet/_C_cpu`` and ``sparsedet/_C_cuda``. They use torch's stable ABI as of torch 2.10, so
that one build serves later versions of torch and all versions of Python. The CUDA kernels also
need a torch of the same major version of CUDA. ``sparsedet/_kernels.json`` says what they were
built for, or why one is left out. torch is not imported: its headers and libraries are enough, and
they are found beside an isolated build as well.

Environment variables:
    SPARSEDET_BUILD_CPU, SPARSEDET_BUILD_CUDA: "auto" (default) builds the kernels where that is
        possible and says what is left out, "1" insists on them, "0" leaves them out. With "1" for
        CUDA the version names it (+cu130); with "0" for both the package is pure Python.
    TORCH_CUDA_ARCH_LIST: GPU architectures, such as "8.0;9.0+PTX".
    CXX, CUDA_HOME: The C++ compiler and the CUDA toolkit, where those found are not the right ones.

Without a C++ compiler or torch the package installs without kernels; PyTorch code serves then.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

STABLE_ABI = "0x020a000000000000"  # torch 2.10
OLDEST_TORCH = (2, 10)
# From Turing to Hopper, and PTX for what comes after.
DEFAULT_CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0+PTX"
COMPILE_ARGS = ["-std=gnu++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
MACROS = [("TORCH_TARGET_VERSION", STABLE_ABI), ("Py_LIMITED_API", "0x030a0000")]
TOOLKIT = "/usr/local/cuda/bin/nvcc"
RECORD = "_kernels.json"
SOURCES = {"CPU": "csrc/cpu/*.cpp", "CUDA": "csrc/cuda/ms_deform_attn.cu"}


class CannotBuild(Exception):
    """Why a library is left out."""


def say(message: str) -> None:
    print(f"sparsedet: {message}", flush=True)


def wish(kind: str) -> str:
    """Return what is asked for: "auto", "0" or "1"."""
    name = f"SPARSEDET_BUILD_{kind}"
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"sparsedet: {name} must be auto, 0 or 1, got {value!r}.")
    return value


def check_platform(kind: str, platform: str) -> None:
    if platform == "win32":
        raise CannotBuild("they need GCC or clang; on Windows, setuptools compiles with MSVC")
    if kind == "CUDA" and platform != "linux":
        raise CannotBuild("torch has CUDA on Linux and Windows alone")


class Torch:
    """Headers and libraries of the torch that the package is built for."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("torch")
        found = [Path(spec.origin).parent] if spec and spec.origin else []
        # An isolated build does not see the packages of its environment.
        found += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
        for folder in found:
            if (folder / "version.py").is_file():
                break
        else:
            raise CannotBuild("torch is not installed")
        versions = (folder / "version.py").read_text()
        self.version = re.search(r"__version__ = '([^']+)'", versions)[1]
        cuda = re.search(r"cuda\b[^=\n]*= '([\d.]+)", versions)
        self.cuda = cuda[1] if cuda else None
        self.include = folder / "include"
        self.lib = folder / "lib"
        # where NVIDIA's Python packages lie, as of CUDA 13
        self.nvidia = folder.parent / "nvidia" / f"cu{(self.cuda or '').split('.')[0]}"
        if tuple(int(part) for part in self.version.split(".")[:2]) < OLDEST_TORCH:
            raise CannotBuild(f"torch {self.version} is older than 2.10")


def local_version(torch: Torch) -> str:
    """Return the part of the version that names CUDA, such as "+cu130"."""
    if torch.cuda is None:
        raise CannotBuild(f"torch {torch.version} has no CUDA")
    return "+cu" + "".join(torch.cuda.split(".")[:2])


def find_nvcc(torch: Torch) -> str:
    """Return the nvcc, of a toolkit or of NVIDIA's Python packages, that can build for a torch."""
    if torch.cuda is None or not (torch.lib / "libtorch_cuda.so").exists():
        raise CannotBuild(f"torch {torch.version} has no CUDA")
    home = os.environ.get("CUDA_HOME")
    usual = [shutil.which("nvcc"), TOOLKIT, torch.nvidia / "bin" / "nvcc"]
    unfit = []
    for path in [Path(home) / "bin" / "nvcc"] if home else usual:
        if path and os.access(path, os.X_OK):
            done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            release = re.search(r"release (\d+)", done.stdout)
            if release and release[1] == torch.cuda.split(".")[0]:
                return str(path)
            unfit.append(f"{path} is of CUDA {release[1] if release else '?'}")
    if unfit:
        raise CannotBuild(f"{', '.join(unfit)}, torch of CUDA {torch.cuda}")
    raise CannotBuild("no nvcc was found; set CUDA_HOME")


def architecture_flags(architectures: str) -> list[str]:
    """Turn "8.0;9.0+PTX" into flags of nvcc."""
    flags = []
    for name in re.split(r"[;, ]+", architectures.strip()):
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def first_error(output: str) -> str:
    """Return the line of a compiler's output that says most: the first error, or the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = re.compile(r"\berror\b|\bld: ", re.IGNORECASE)
    errors = [line for line in lines if telling.search(line)]
    return (errors or lines[-1:] or ["it said nothing"])[0][:300]


@contextmanager
def stderr_to(file: IO[str]) -> Iterator[None]:
    """Send what this process and its children write to standard error to a file."""
    sys.stderr.flush()
    usual = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(usual, 2)
        os.close(usual)


def read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


class BuildLibraries(build_ext):
    """Builds what can be built, and says what is left out and why."""

    def build_extensions(self) -> None:
        package = Path(self.build_lib) / "sparsedet"
        package.mkdir(parents=True, exist_ok=True)
        remove_built(package)
        record: dict[str, dict[str, str | None]] = {}
        wanted, self.extensions = self.extensions, []  # files of the latter alone are copied
        for ext in wanted:
            if not ext.sources:
                raise SystemExit(f"sparsedet: no sources of {ext.name}: run setup.py where it lies")
            kind = ext.name.rpartition("_")[2].upper()
            try:
                record[kind] = self.build_library(kind, ext)
                self.extensions.append(ext)
            except CannotBuild as error:
                if wish(kind) == "1":
                    raise SystemExit(f"sparsedet: SPARSEDET_BUILD_{kind}=1, but {error}") from error
                say(f"installing WITHOUT compiled {kind} kernels, PyTorch code serves: {error}")
                record[kind] = {"left_out": str(error)}
        (package / RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def build_library(self, kind: str, ext: Extension) -> dict[str, str | None]:
        check_platform(kind, sys.platform)
        torch = Torch()
        if kind == "CUDA":
            self.build_cuda(ext, torch)
        else:
            self.build_cpu(ext, torch)
        say(f"built the {kind} kernels with torch {torch.version}")
        return {"torch": torch.version, "cuda": torch.cuda if kind == "CUDA" else None}

    def copy_extensions_to_source(self) -> None:
        remove_built(Path("sparsedet"))
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib) / "sparsedet" / RECORD, "sparsedet")

    def build_cpu(self, ext: Extension, torch: Torch) -> None:
        ext.define_macros += MACROS
        ext.include_dirs.append(str(torch.include))
        ext.extra_compile_args += [*COMPILE_ARGS, "-fvisibility=hidden"]
        ext.library_dirs.append(str(torch.lib))
        ext.libraries.append("torch_cpu")
        compiler = self.compiler.compiler_cxx[0]
        if shutil.which(compiler) is None:
            raise CannotBuild(f"there is no C++ compiler ({compiler})")
        with tempfile.TemporaryFile("w+") as said:
            try:
                with stderr_to(said):
                    self.build_extension(ext)
            except (BaseError, CCompilerError, OSError) as error:
                raise CannotBuild(f"{compiler} failed: {first_error(read(said))}") from error
            finally:
                sys.stderr.write(read(said))

    def build_cuda(self, ext: Extension, torch: Torch) -> None:
        nvcc = find_nvcc(torch)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
        compiler = os.environ.get("CXX")
        command = [
            *(nvcc, "-shared", "-o", str(target), *ext.sources, "-std=c++17", "-O3"),
            *(["-ccbin", compiler] if compiler else []),
            *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wno-psabi", "-cudart", "shared"),
            *("-cudadevrt", "none"),
            *architecture_flags(architectures),
            *("-DUSE_CUDA", *(f"-D{name}={value}" for name, value in MACROS)),
            *(f"-I{torch.include}", f"-L{torch.lib}", "-ltorch_cuda", "-ltorch_cpu"),
            f"-L{self.link_runtime(torch)}",
        ]
        say(" ".join(command))
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(done.stderr)
        if done.returncode != 0:
            raise CannotBuild(f"{nvcc} failed: {first_error(done.stderr)}")

    def link_runtime(self, torch: Torch) -> Path:
        """Return a folder with NVIDIA's packaged runtime, if any, under the name for linkers."""
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "libcudart.so"
        link.unlink(missing_ok=True)
        for library in sorted((torch.nvidia / "lib").glob("libcudart.so.*"))[:1]:
            link.symlink_to(library)
        return folder


def remove_built(package: Path) -> None:
    """Delete what an earlier build left: it would be installed in place of this one's."""
    for path in [*package.glob("_C_*"), package / RECORD]:
        path.unlink(missing_ok=True)


def extension(kind: str) -> Extension:
    headers = [str(path) for path in sorted(Path("csrc").rglob("*.*h"))]
    files = [str(path) for path in sorted(Path().glob(SOURCES[kind]))]
    name = f"sparsedet._C_{kind.lower()}"
    return Extension(name, files, depends=headers, language="c++", py_limited_api=True)


def main() -> None:
    kinds = [kind for kind in SOURCES if wish(kind) != "0"]
    options = {"bdist_wheel": {"py_limited_api": "cp310"}}
    if wish("CUDA") == "1":
        try:
            options["egg_info"] = {"tag_build": local_version(Torch())}
        except CannotBuild as error:
            raise SystemExit(f"sparsedet: SPARSEDET_BUILD_CUDA=1, but {error}") from error
    setup(
        ext_modules=[extension(kind) for kind in kinds],
        cmdclass={"build_ext": BuildLibraries},
        options=options,
    )


if __name__ == "__main__":
    main()

"""Builds the compiled kernels; all other metadata is in pyproject.toml.

Two libraries, since one that is linked to CUDA does not load where torch has none:
``sparsedet/_C_cpu`` and ``sparsedet/_C_cuda``. They use torch's stable ABI as of torch 2.10, so
that one build serves later versions of torch and all versions of Python. torch is not imported:
its headers and libraries are enough, and they are found beside an isolated build as well.

Environment variables:
    SPARSEDET_BUILD_CUDA: "auto" (default) builds the CUDA kernels where nvcc and torch agree,
        "1" insists on it, "0" leaves them out.
    TORCH_CUDA_ARCH_LIST: GPU architectures, such as "8.0;9.0+PTX".
    CXX, CUDA_HOME: The C++ compiler and the CUDA toolkit, where those found are not the right ones.

Without a C++ compiler or torch the package installs without kernels; PyTorch code serves then.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

STABLE_ABI = "0x020a000000000000"  # torch 2.10
OLDEST_TORCH = (2, 10)
# From Turing to Hopper, and PTX for what comes after.
DEFAULT_CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0+PTX"
COMPILE_ARGS = ["-std=gnu++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
MACROS = [("TORCH_TARGET_VERSION", STABLE_ABI), ("Py_LIMITED_API", "0x030a0000")]


class CannotBuild(Exception):
    """Why a library is left out."""


def say(message: str) -> None:
    print(f"sparsedet: {message}", flush=True)


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
        self.cuda = re.search(r"cuda\b[^=\n]*= '(\d+)", versions)
        self.include = folder / "include"
        self.lib = folder / "lib"
        if tuple(int(part) for part in self.version.split(".")[:2]) < OLDEST_TORCH:
            raise CannotBuild(f"torch {self.version} is older than 2.10")


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    nvcc = Path(home) / "bin" / "nvcc" if home else shutil.which("nvcc")
    for path in (nvcc, "/usr/local/cuda/bin/nvcc"):
        if path and os.access(path, os.X_OK):
            return str(path)
    raise CannotBuild("no nvcc was found; set CUDA_HOME")


def check_cuda(torch: Torch) -> str:
    """Return nvcc's path if it can build for this torch."""
    if torch.cuda is None or not (torch.lib / "libtorch_cuda.so").exists():
        raise CannotBuild(f"torch {torch.version} has no CUDA")
    nvcc = find_nvcc()
    about = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)", about)
    if release is None or release[1] != torch.cuda[1]:
        raise CannotBuild(
            f"{nvcc} is of CUDA {release[1] if release else '?'}, torch of CUDA {torch.cuda[1]}"
        )
    return nvcc


def architecture_flags(architectures: str) -> list[str]:
    """Turn "8.0;9.0+PTX" into flags of nvcc."""
    flags = []
    for name in re.split(r"[;, ]+", architectures.strip()):
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def extension(name: str, sources: str) -> Extension:
    headers = [str(path) for path in sorted(Path("csrc").rglob("*.*h"))]
    files = [str(path) for path in sorted(Path().glob(sources))]
    return Extension(
        f"sparsedet.{name}", files, depends=headers, language="c++", py_limited_api=True
    )


class BuildLibraries(build_ext):
    """Builds what can be built, and says what is left out and why."""

    def run(self) -> None:
        wish = os.environ.get("SPARSEDET_BUILD_CUDA", "auto")
        if wish not in ("auto", "0", "1"):
            raise ValueError(f"SPARSEDET_BUILD_CUDA must be auto, 0 or 1, got {wish!r}.")
        self.wants_cuda = wish
        self.built: list[Extension] = []
        super().run()

    def build_extensions(self) -> None:
        for ext in self.extensions:
            is_cuda = ext.name.endswith("_cuda")
            if not ext.sources:
                raise SystemExit(f"sparsedet: no sources of {ext.name}: run setup.py where it lies")
            if is_cuda and self.wants_cuda == "0":
                continue
            try:
                (self.build_cuda if is_cuda else self.build_cpu)(ext, Torch())
                self.built.append(ext)
            except CannotBuild as error:
                if is_cuda and self.wants_cuda == "1":
                    raise SystemExit(f"sparsedet: SPARSEDET_BUILD_CUDA=1, but {error}") from error
                kind = "CUDA" if is_cuda else "CPU"
                say(f"installing WITHOUT compiled {kind} kernels, PyTorch code serves: {error}")
        self.extensions = self.built  # what follows copies the files of these alone

    def build_cpu(self, ext: Extension, torch: Torch) -> None:
        ext.define_macros += MACROS
        ext.include_dirs.append(str(torch.include))
        ext.extra_compile_args += [*COMPILE_ARGS, "-fvisibility=hidden"]
        ext.library_dirs.append(str(torch.lib))
        ext.libraries.append("torch_cpu")
        try:
            self.build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            raise CannotBuild(f"the C++ compiler failed: {error}"[:100] + " ...") from error
        say(f"built the CPU kernels with torch {torch.version}")

    def build_cuda(self, ext: Extension, torch: Torch) -> None:
        nvcc = check_cuda(torch)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHITECTURES
        compiler = os.environ.get("CXX")
        command = [
            *(nvcc, "-shared", "-o", str(target), *ext.sources, "-std=c++17", "-O3"),
            *(["-ccbin", compiler] if compiler else []),
            *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wno-psabi", "-cudart", "shared"),
            *architecture_flags(architectures),
            *("-DUSE_CUDA", *(f"-D{name}={value}" for name, value in MACROS)),
            *(f"-I{torch.include}", f"-L{torch.lib}", "-ltorch_cuda", "-ltorch_cpu"),
        ]
        say(" ".join(command))
        if subprocess.run(command, check=False).returncode != 0:
            raise CannotBuild("nvcc failed, as shown above")
        say(f"built the CUDA kernels with torch {torch.version} for {architectures}")


setup(
    ext_modules=[
        extension("_C_cpu", "csrc/cpu/*.cpp"),
        extension("_C_cuda", "csrc/cuda/ms_deform_attn.cu"),
    ],
    cmdclass={"build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

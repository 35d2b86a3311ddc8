"""Deformable attention on the GPU as it is usually written, to measure against."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparsedet.files import file_digest

SOURCE = Path(__file__).with_name("naive_ms_deform_attn.cu")
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

Shapes = Sequence[tuple[int, int]]


def load_naive() -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor, Tensor]]]:
    """Compile the naive kernels (once per machine; needs nvcc) and load them.

    Returns:
        ``forward(value, spatial_shapes, locations, weights)`` -> output, and
        ``backward(grad_output, value, spatial_shapes, locations, weights)`` -> gradients of
        value (float32), locations and weights. Contiguous CUDA tensors; ``value`` in float32,
        float16 or bfloat16, locations and weights in float32; D a power of two.

    Raises:
        ValueError: If there is no nvcc, or it fails.
    """
    functions = ctypes.CDLL(str(_compile()))

    def forward(value: Tensor, spatial_shapes: Shapes, locations: Tensor, weights: Tensor):
        queries = locations.shape[1]
        output = value.new_empty(value.shape[0], queries, value.shape[2] * value.shape[3])
        arguments = _arguments(value, spatial_shapes, locations)
        tensors = (value, locations, weights, output)
        _call(functions.naive_forward, *arguments, *map(_pointer, tensors), _stream())
        return output

    def backward(
        grad_output: Tensor,
        value: Tensor,
        spatial_shapes: Shapes,
        locations: Tensor,
        weights: Tensor,
    ):
        grads = (
            torch.zeros(value.shape, dtype=torch.float32, device=value.device),
            torch.empty_like(locations),
            torch.empty_like(weights),
        )
        arguments = _arguments(value, spatial_shapes, locations)
        tensors = (grad_output, value, locations, weights, *grads)
        _call(functions.naive_backward, *arguments, *map(_pointer, tensors), _stream())
        return grads

    return forward, backward


def _compile() -> Path:
    name = f"naive_ms_deform_attn_{file_digest(SOURCE)[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if library.exists():
        return library
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    nvcc = nvcc or "/usr/local/cuda/bin/nvcc"
    part = library.with_name(f"{library.name}.{os.getpid()}")
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    command = [nvcc, "-shared", "-Xcompiler", "-fPIC", "-O3", f"-arch=sm_{major}{minor}"]
    try:
        subprocess.run([*command, "-o", str(part), str(SOURCE)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{nvcc} cannot compile {SOURCE.name}: {error}") from error
    part.rename(library)
    return library


def _arguments(value: Tensor, spatial_shapes: Shapes, locations: Tensor) -> tuple[object, ...]:
    batch, tokens, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    sizes = (ctypes.c_int32 * 7)(batch, tokens, heads, channels, queries, levels, points)
    flat = [size for shape in spatial_shapes for size in shape]
    return ELEMENTS[value.dtype], sizes, (ctypes.c_int32 * len(flat))(*flat)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_cuda and tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def _call(function: Callable[..., int], *arguments: object) -> None:
    code = function(*arguments)
    if code:
        raise RuntimeError(f"{function.__name__}: CUDA error {code}")

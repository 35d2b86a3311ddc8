"""What a frozen case was computed from: weights, pictures and objects, each made from a seed.

NumPy keeps the numbers of `RandomState` the same over its versions, so nothing of this is stored.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILES = Path(__file__).resolve().parents[1] / "data_files/parity"

MEAN = np.array([123.675, 116.28, 103.53], np.float32)[:, None, None]
STD = np.array([58.395, 57.12, 57.375], np.float32)[:, None, None]

_SAMPLED = 256  # numbers that are kept of a larger tensor


def weights(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that a checkpoint holds under a key: normal numbers that the key's name seeds.

    Matrices and kernels are scaled by their fan-in, gains and variances lie about 1, biases are
    small but for those of sampling offsets, which reach a cell far.
    """
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape or (1,))
    normal = normal.reshape(shape)
    last = key.rpartition(".")[2]
    if last == "running_var":
        values = 1.0 + 0.1 * np.abs(normal)
    elif last == "running_mean":
        values = 0.1 * normal
    elif last.endswith("bias"):
        values = normal if key.endswith("sampling_offsets.bias") else 0.02 * normal
    elif len(shape) > 1:
        values = normal / np.sqrt(float(np.prod(shape[1:])))
    else:
        values = 1.0 + 0.05 * normal if last == "weight" else 0.3 * normal
    return values.astype(np.float32)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """RGB (3, h, w), whole numbers in 0..255: six waves per channel, and noise."""
    draw = np.random.RandomState(seed)
    rows, columns = np.indices((height, width), dtype=np.float64)
    pixels = np.zeros((3, height, width))
    for channel in pixels:
        for _ in range(6):
            across, down = draw.uniform(-0.15, 0.15), draw.uniform(-0.15, 0.15)
            phase, strength = draw.uniform(0, 6.28), draw.uniform(10, 40)
            channel += strength * np.sin(across * columns + down * rows + phase)
    pixels += 127.5 + 25.0 * draw.standard_normal(pixels.shape)
    return np.floor(pixels.clip(0, 255)).astype(np.float32)


def objects(seed: int, count: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (count, 4), cxcywh in [0, 1], and labels."""
    draw = np.random.RandomState(seed)
    sizes = draw.uniform(0.05, 0.5, (count, 2))
    centers = sizes / 2 + draw.uniform(0, 1, (count, 2)) * (1 - sizes)
    boxes = np.concatenate((centers, sizes), axis=1).astype(np.float32)
    return boxes, draw.randint(0, num_classes, count).astype(np.int64)


@cache
def listing(name: str) -> list[list[str]]:
    """Rows (key, shape, dtype, key whose tensor it shares, kind) of a released checkpoint."""
    lines = lzma.decompress((FILES / f"keys/{name}.txt.xz").read_bytes()).decode().splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def canonical_keys(name: str) -> dict[str, str]:
    """Key -> the key whose tensor it shares (itself where it shares none)."""
    return {row[0]: row[3] for row in listing(name)}


def checkpoint(
    name: str, values: Callable[[str, tuple[int, ...]], np.ndarray] = weights
) -> dict[str, Tensor]:
    """The whole checkpoint of a listing; its counters are zero."""
    state = {}
    for key, shape, dtype, canonical, _ in listing(name):
        size = tuple(int(x) for x in shape.strip("()").split(",") if x.strip())
        state[key] = (
            torch.from_numpy(values(canonical, size))
            if dtype.startswith("float")
            else torch.zeros(size, dtype=getattr(torch, dtype))
        )
    return state


def sample(name: str, tensor: Tensor) -> Tensor:
    """What is kept of a tensor of floating numbers: all, or some that its name chooses."""
    count = tensor.numel()
    if count <= _SAMPLED:
        return tensor.flatten()
    places = np.random.RandomState(zlib.crc32(name.encode())).permutation(count)[:_SAMPLED]
    return tensor.flatten()[torch.from_numpy(places)]

"""Argument checks and types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import Tensor

# (height, width) per level: a sequence of pairs of ints, or an integer tensor or array [L 2]
SpatialShapes = Sequence[Sequence[int]] | Tensor | np.ndarray


def on_host(sizes: SpatialShapes) -> Sequence[tuple[int, int]]:
    """Sizes as numbers on the host; a sequence is returned unchanged.

    Reading a tensor on an accelerator waits for the device, so frequent callers pass a list.

    Args:
        sizes: pairs of numbers.

    >>> on_host(np.array([[2, 3]]))
    [[2, 3]]
    """
    if isinstance(sizes, Tensor | np.ndarray):
        sizes = sizes.tolist()
    return cast(Sequence[tuple[int, int]], sizes)


def require_positive(value: int, name: str, *, key: str, least: int = 1) -> None:
    """Refuse a value that is not an integer of at least ``least``.

    Args:
        value: the argument.
        name: the class and the argument, such as ``"DeformableEncoder.num_layers"``.
        key: the config key that sets it.
        least: the smallest valid number.

    Raises:
        ValueError: with the name, the value and the key.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{name} must be an integer of at least {least}, got {value!r}. Set {key}."
        )


def require_layers(
    owner: str,
    key: str,
    *,
    embed_dim: int,
    num_heads: int,
    feedforward_dim: int,
    num_layers: int,
    fewest: int = 1,
) -> None:
    """Refuse invalid sizes of a stack of attention layers.

    Args:
        owner: the class, such as ``"DeformableEncoder"``.
        key: the config key of the component, such as ``"model.encoder"``.
        embed_dim: channels, which ``num_heads`` must divide.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward blocks.
        num_layers: layers.
        fewest: the smallest valid number of layers.

    Raises:
        ValueError: with the class, the argument and the key.
    """
    require_positive(num_layers, f"{owner}.num_layers", key=f"{key}.num_layers", least=fewest)
    sizes = {
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "feedforward_dim": feedforward_dim,
    }
    for name, size in sizes.items():
        require_positive(size, f"{owner}.{name}", key=f"{key}.{name}")
    if embed_dim % num_heads:
        raise ValueError(
            f"{owner}.num_heads must divide embed_dim ({embed_dim}), got {num_heads}. "
            f"Set {key}.num_heads."
        )

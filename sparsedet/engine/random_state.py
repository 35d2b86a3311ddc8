"""Random states of a process: to save, restore and protect them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

__all__ = ["get_random_state", "isolated_random_state", "seed_everything", "set_random_state"]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """States of Python, numpy, torch and the device, made of plain values and tensors."""
    _, keys, position, has_gauss, gauss = cast(tuple, np.random.get_state(legacy=True))
    state = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `get_random_state` returned, also after a trip through a file."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "device" in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


@contextmanager
def isolated_random_state(device: torch.device) -> Iterator[None]:
    """Whatever the block draws, the random states afterwards are those from before it."""
    state = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)

"""Numbers of the host on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constants(
    numbers: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A row of host numbers, filled on the device one by one: for the few that a pass needs.

    A copy from the host would wait for what the device has still to do, and a CUDA graph cannot
    hold one.

    Args:
        numbers: at least one.
        device: where the row is made.
        dtype: of the row.

    >>> constants([2, 3], torch.device("cpu"))
    tensor([2., 3.])
    """
    return torch.stack([torch.full((), each, dtype=dtype, device=device) for each in numbers])

"""Host numbers as a tensor on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constants(
    numbers: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A vector of a few host numbers, filled on the device one by one.

    A copy from the host would wait for pending work of the device, and a CUDA graph cannot contain
    one.

    Args:
        numbers: at least one.
        device: the device of the vector.
        dtype: the dtype of the vector.

    >>> constants([2, 3], torch.device("cpu"))
    tensor([2., 3.])
    """
    return torch.stack([torch.full((), each, dtype=dtype, device=device) for each in numbers])

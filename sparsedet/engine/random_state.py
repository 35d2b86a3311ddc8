"""Random numbers of a run: seeded anew at every iteration, so that no state has to be kept."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

__all__ = ["iteration_seed", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def iteration_seed(seed: int, iteration: int, rank: int) -> int:
    """The seed of one process at one iteration.

    What is drawn there follows from these three numbers: not from what was drawn before, in an
    evaluation or in a step that was broken off. So a run goes on from any checkpoint as if it had
    not stopped, whichever of its processes wrote it.
    """
    digest = hashlib.blake2b(f"{seed}-{iteration}-{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits

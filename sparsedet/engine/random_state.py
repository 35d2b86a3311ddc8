"""Random numbers of a run: seeded anew for every batch, so that no state has to be kept."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

__all__ = ["batch_seed", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def batch_seed(seed: int, place: int, rank: int, user: str) -> int:
    """The seed of one process for one batch.

    What is drawn then follows from these alone: not from what was drawn before, in an evaluation or
    in a step that was broken off. So a run goes on from any checkpoint as if it had not stopped,
    whichever of its processes wrote it.

    Args:
        seed: of the run.
        place: of the batch, counted over the whole run.
        rank: the process.
        user: who draws. A loader that draws in this process, more at its beginning than later, so
            takes no numbers from the model.
    """
    text = f"{seed}-{place}-{rank}-{user}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits

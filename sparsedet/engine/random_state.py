"""Random numbers of a run: reseeded for every batch, so that no state has to be saved."""

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

    The random numbers of a batch depend only on these arguments, not on numbers drawn earlier in an
    evaluation or in an interrupted step. A run that is resumed from any checkpoint therefore draws
    the same numbers as one that was never stopped, whichever process wrote the checkpoint.

    Args:
        seed: seed of the run.
        place: index of the batch, counted over the whole run.
        rank: rank of the process.
        user: name of the code that draws. Loader and model have separate seeds, so that a loader
            that draws in this process does not change the numbers of the model.
    """
    text = f"{seed}-{place}-{rank}-{user}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits

"""A tiny detector and loader for the tests of the engine: the seams without their rooms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from sparsedet.engine import Trainer


class TinyModel(nn.Module):
    """Learns to predict a number; has dropout, and a buffer that moves while training."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 1)

    def forward(self, samples: list[dict[str, Any]]) -> Any:
        x = torch.stack([sample["image"] for sample in samples]).to(self.head.weight.device)
        y = self.head(self.dropout(self.norm(self.backbone(x))).relu()).squeeze(1)
        if not self.training:
            return y
        target = torch.tensor([sample["target"] for sample in samples], device=y.device)
        error = y.float() - target
        return {"stage.0/square": error.square().mean(), "stage.0/abs": 0.1 * error.abs().mean()}


class TinyLoader:
    """Samples that follow from their place alone; `rank` takes its part of each batch."""

    def __init__(self, batch_size: int = 4, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size
        self.poisoned: int | None = None

    def __len__(self) -> int:
        return 5

    def sample(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index % 20)
        image = torch.randn(3, generator=generator)
        if index == self.poisoned:
            image[0] = float("nan")
        return {"image": image, "image_id": 1000 + index, "target": float(image.sum())}

    def iter_from(self, iteration: int) -> Iterator[list[dict[str, Any]]]:
        while True:
            first = iteration * self.batch_size
            indices = range(first + self.rank, first + self.batch_size, self.world_size)
            yield [self.sample(index) for index in indices]
            iteration += 1


def tiny_trainer(
    model: nn.Module, max_iter: int, *, loader: TinyLoader | None = None, **options: Any
) -> Trainer:
    """A trainer with AdamW at one rate."""
    return Trainer(
        model,
        (loader or TinyLoader()).iter_from,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        lr_multiplier=ConstantParamScheduler(1.0),
        max_iter=max_iter,
        **options,
    )

"""Random arguments of ms_deform_attn, shared by the tests of its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import sparsedet.layers  # noqa: F401 (registers the operator)

OP = torch.ops.sparsedet.ms_deform_attn.default
LEVELS = ((5, 7), (3, 4))


@dataclass
class Inputs:
    """Arguments of ms_deform_attn."""

    value: Tensor
    shapes: tuple[tuple[int, int], ...]
    locations: Tensor
    weights: Tensor

    @property
    def arguments(self) -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor]:
        return self.value, self.shapes, self.locations, self.weights

    @property
    def flat(self) -> tuple[Tensor, list[int], Tensor, Tensor]:
        """Arguments of the operator itself."""
        return self.value, [n for shape in self.shapes for n in shape], self.locations, self.weights

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.locations, self.weights

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Inputs:
        """Leaves that require gradients, locations and weights in the precision of the sums."""
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        value = self.value.detach().to(device, dtype).requires_grad_()
        locations = self.locations.detach().to(device, precise).requires_grad_()
        weights = self.weights.detach().to(device, precise).requires_grad_()
        return Inputs(value, self.shapes, locations, weights)


def make_inputs(
    shapes: tuple[tuple[int, int], ...] = LEVELS,
    batch: int = 2,
    queries: int = 6,
    heads: int = 3,
    channels: int = 4,
    points: int = 3,
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Locations from -0.2 to 1.2, so that some corners and some points lie outside."""
    tokens = sum(height * width for height, width in shapes)
    samples = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, tokens, heads, channels, dtype=torch.float64)
    locations = torch.rand(*samples, 2, dtype=torch.float64) * 1.4 - 0.2
    logits = torch.randn(*samples, dtype=torch.float64)
    weights = logits.flatten(3).softmax(-1).view(samples) if points else logits
    # Through float32, so that every precision is given the same numbers.
    return Inputs(value.float(), shapes, locations.float(), weights.float()).to(dtype)


def make_order(inputs: Inputs) -> Tensor:
    """Another random permutation of the queries for each image."""
    batch, queries = inputs.locations.shape[:2]
    return torch.rand(batch, queries).argsort(1)


def gradients(function, inputs: Inputs, grad_output: Tensor, **options) -> tuple[Tensor, ...]:
    output = function(*inputs.arguments, **options)
    return torch.autograd.grad(output, inputs.tensors, grad_output.to(output))

"""Fully connected blocks, and what is computed in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsedet.layers import mlp
from sparsedet.layers.mlp import FeedForward
from sparsedet.layers.precision import in_float32


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 24])
def test_blocks_of_tokens_give_what_all_of_them_give(rows, monkeypatch):
    monkeypatch.setattr(mlp, "_HIDDEN_AT_A_TIME", 8 * 16)
    part = FeedForward(4, 16).double()
    x = torch.randn(2, rows, 4, dtype=torch.float64)
    expected = part(x)
    with torch.no_grad():
        torch.testing.assert_close(part(x), expected)
    by_hand = part.linear2(part.linear1(x).clamp(min=0))
    torch.testing.assert_close(expected, by_hand)


def test_a_gradient_passes_the_block():
    part, x = FeedForward(4, 16).double(), torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(part, (x.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_fp32_whatever_the_weights(dtype, autocast):
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).to(dtype)
    x = torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = in_float32(module, x.to(dtype))
    assert got.dtype == torch.float32
    expected = module.double()(x.to(dtype).double())
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(in_float32(module.to(dtype), x).sum(), module[1].bias)
    assert torch.equal(gradient, torch.full_like(gradient, 5))


def test_a_single_token():
    part, x = FeedForward(4, 16), torch.randn(4)
    with torch.no_grad():
        torch.testing.assert_close(part(x), part(x[None])[0])

"""Where the last decoder layer looks, query by query."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.layers import MultiScaleDeformableAttention
from sparsedet.modeling import GlobalDecoder
from sparsedet.modeling.stages import MultiScaleFeatures


@dataclass
class LastCall:
    """What the cross-attention of the last decoder layer was called with, and what it gave."""

    module: nn.Module | None = None
    inputs: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    output: Any = None

    def take(self, module: nn.Module, inputs: Any, options: Any, output: Any) -> None:
        """Remember a call; the last one stays."""
        self.module, self.inputs, self.options, self.output = module, inputs, options, output


def shows_points(decoder: nn.Module) -> bool:
    """Whether the decoder samples points."""
    return any(isinstance(each, MultiScaleDeformableAttention) for each in decoder.modules())


def shows_maps(decoder: nn.Module) -> bool:
    """Whether the queries of the decoder attend to all tokens, so that each has a map."""
    return isinstance(decoder, GlobalDecoder)


@contextmanager
def last_call(decoder: nn.Module) -> Iterator[LastCall]:
    """Watch the cross-attention of a decoder of either kind; of another one nothing is known."""
    call = LastCall()
    watched = [each for each in decoder.modules() if isinstance(each, _DEFORMABLE)]
    if isinstance(decoder, GlobalDecoder):
        layers: Any = decoder.layers
        layer = layers[-1]
        watched = [layer.cross_attention]
    with ExitStack() as hooks:
        for module in watched:
            hooks.callback(module.register_forward_hook(call.take, with_kwargs=True).remove)
        yield call


_DEFORMABLE = MultiScaleDeformableAttention


def sampling_points(
    call: LastCall, features: MultiScaleFeatures, queries: Tensor
) -> tuple[Float[Tensor, "n M L P 2"], Float[Tensor, "n M L P"]]:
    """Where some queries of the first image sample, and how much each point counts.

    Args:
        call: of a deformable cross-attention.
        features: the map that it read.
        queries: their numbers, ``[n]``.

    Returns:
        Points (x, y) in [0, 1] of the image, some of which lie outside of it, and their weights,
        which sum to 1 over levels and points in each head.
    """
    output = call.output
    if not isinstance(output, tuple):
        options = {**call.options, "return_sampling": True}
        assert call.module is not None
        output = call.module.forward(*call.inputs, **options)
    locations, weights = (each[0, queries].float() for each in output[1:])
    h, w = features.image_sizes[0]
    padded = [
        (columns * stride / w, rows * stride / h)
        for (rows, columns), stride in zip(features.spatial_shapes, features.strides, strict=True)
    ]
    scale = torch.tensor(padded, device=locations.device)
    return locations * scale[:, None], weights


def attention_maps(
    call: LastCall, decoder: GlobalDecoder, memory: MultiScaleFeatures, queries: Tensor
) -> Float[Tensor, "n N"]:
    """The attention that some queries of the first image pay to every token, mean over the heads.

    Args:
        call: of a cross-attention to all tokens.
        decoder: that it belongs to.
        memory: encoded features that the decoder got.
        queries: their numbers, ``[n]``.
    """
    attention: Any = call.module
    maps = []
    for query in queries.tolist():
        counted = torch.zeros(call.inputs[0].shape[:2], device=memory.tokens.device)
        counted[0, query] = 1 / attention.num_heads
        mass = attention.forward(*call.inputs, **{**call.options, "counted": counted})[1]
        maps.append(decoder.spread_mass([mass], memory)[0])
    return torch.stack(maps) if maps else memory.tokens.new_zeros(0, memory.num_tokens)

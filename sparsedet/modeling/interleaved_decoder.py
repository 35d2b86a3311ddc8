"""A decoder with its own encoder layers, which alternate with its decoder layers (IMFA)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.attention import draw_matrices
from sparsedet.layers.deformable_attention import ms_deform_attn
from sparsedet.layers.mlp import MLP, Activation
from sparsedet.layers.positional import inverse_sigmoid, sine_embedding
from sparsedet.layers.precision import in_float32
from sparsedet.modeling.global_attention import GlobalEncoder
from sparsedet.modeling.global_decoder import Cross, GlobalDecoder, Readable
from sparsedet.modeling.heads import Head, Heads
from sparsedet.modeling.parts import Assembly
from sparsedet.modeling.stages import (
    DecoderOutput,
    MultiScaleFeatures,
    PooledTokens,
    Queries,
    TokenSelection,
    class_logits,
)
from sparsedet.modeling.tokens import gather_rows
from sparsedet.registry import DECODERS, renamed, retires


class KeypointSampler(nn.Module):
    """Tokens sampled from all levels at a few points around each box (IMFA, section 3).

    The points, the weights of the levels at each point, and the matrices that are applied to the
    token of a point are functions of the box's query.

    Args:
        embed_dim: channels, divisible by 4: the matrices project to a quarter of them and back.
        num_levels: feature levels.
        num_points: points around a box, at most its width and height away from its center.
        temperature: of the sine embedding of the points.
    """

    def __init__(
        self, embed_dim: int, *, num_levels: int, num_points: int, temperature: float
    ) -> None:
        super().__init__()
        self.num_points, self.temperature = num_points, temperature
        hidden = embed_dim // 4
        self.offsets = MLP(embed_dim, 2 * num_points, hidden_dim=embed_dim, num_layers=2)
        self.level_weights = nn.Linear(embed_dim, num_points * num_levels)
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        self.matrices = nn.Linear(embed_dim, 2 * embed_dim * hidden)
        self.hidden_norm, self.norm = nn.LayerNorm(hidden), nn.LayerNorm(embed_dim)
        draw_matrices(self)

    def forward(
        self,
        x: Float[Tensor, "B R C"],
        boxes: Float[Tensor, "B R 4"],
        features: MultiScaleFeatures,
    ) -> tuple[Float[Tensor, "B S C"], Float[Tensor, "B S C"]]:
        """Tokens and their positions; the points of a box are contiguous.

        Args:
            x: queries.
            boxes: their boxes.
            features: the maps to sample; padding must be zero, like places outside the maps.
        """
        center, size = boxes[:, :, None].split(2, dim=-1)
        points = (self.num_points, -1)
        offsets = in_float32(self.offsets, x).tanh().unflatten(-1, points)
        places = torch.addcmul(center, size, offsets).flatten(1, 2)
        weights = in_float32(self.level_weights, x).unflatten(-1, points).softmax(-1).flatten(1, 2)
        read = ms_deform_attn(
            features.to_cells(features.tokens)[:, :, None],
            features.spatial_shapes,
            features.to_levels(places)[:, :, None, :, None],
            weights[:, :, None, :, None],
        )
        read = read + weights.to(read.dtype) @ self.level_embed.to(read.dtype)
        sine = sine_embedding(places.flip(-1), x.shape[-1] // 2, temperature=self.temperature)
        return self._mix(x, read), sine.to(read.dtype)

    def _mix(self, x: Float[Tensor, "B R C"], read: Float[Tensor, "B S C"]) -> Tensor:
        """Apply the matrices that a query generates to its sampled tokens."""
        there, back = self.matrices(x).chunk(2, dim=-1)
        rows = read.unflatten(1, (-1, self.num_points))
        hidden = F.relu(self.hidden_norm(rows @ there.unflatten(-1, (read.shape[-1], -1))))
        return self.norm(hidden @ back.unflatten(-1, (-1, read.shape[-1]))).flatten(1, 2)


@DECODERS.register()
@retires("conditional_pos", renamed("conditional_pos", "makes_pos"))
class InterleavedDecoder(GlobalDecoder):
    """Alternating encoder and decoder layers; the encoder uses what was found so far (IMFA).

    Zhang et al., *Towards Efficient Use of Multi-Scale Features in Transformer-Based Object
    Detectors*, CVPR 2023. It encodes the coarsest level of its memory itself, so the memory must be
    the unchanged output of the neck: ``GlobalEncoder(num_layers=0)``. In every layer, the tokens of
    this level attend to each other, then the queries attend to them. From the second layer on, the
    queries with the highest class scores select ``num_regions`` boxes, and ``KeypointSampler``
    samples tokens from all levels around them. These tokens join those of the level in the encoder
    and the decoder layer and are discarded afterwards. From the third layer on, the output of the
    first encoder layer is added to the level before its encoder layer.

    The recorded cross-attention mass is that of the level, without the attention to sampled tokens.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        feedforward_dim: hidden channels of the feed-forward blocks.
        dropout: probability.
        num_layers: number of encoder layers, and of decoder layers.
        activation: see ``FeedForward``.
        refine: see ``GlobalDecoder``. With it, the selected boxes are the references, otherwise the
            predictions of the previous layer.
        look_forward_twice: see ``GlobalDecoder``.
        makes_pos: see ``GlobalDecoder``.
        cross: see ``GlobalDecoder``.
        modulate_size: see ``GlobalDecoder``.
        eps: see ``GlobalDecoder``.
        num_levels: feature levels.
        num_regions: selected boxes, a fifth of the queries in the paper; all if there are fewer
            queries. Denoising queries are not selected.
        num_points: sampled tokens of each box.
        temperature: temperature of the position embedding of the map.
        scale_tokens_pos: ``GlobalEncoder.scale_pos`` of its encoder.
        activation_checkpointing: see ``GlobalDecoder``; for both kinds of layers.
    """

    num_levels: int
    reads_pooled = False

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        *,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        num_layers: int = 6,
        activation: Activation = "relu",
        refine: bool = False,
        look_forward_twice: bool = False,
        makes_pos: bool = False,
        cross: Cross = "plain",
        modulate_size: bool = False,
        eps: float = 1e-5,
        num_levels: int = 4,
        num_regions: int = 60,
        num_points: int = 8,
        temperature: float = 10000.0,
        scale_tokens_pos: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        for name, number in dict(num_regions=num_regions, num_points=num_points).items():
            require_positive(number, f"InterleavedDecoder.{name}", key=f"model.decoder.{name}")
        super().__init__(
            embed_dim,
            num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            num_layers=num_layers,
            activation=activation,
            refine=refine,
            look_forward_twice=look_forward_twice,
            makes_pos=makes_pos,
            cross=cross,
            modulate_size=modulate_size,
            eps=eps,
            activation_checkpointing=activation_checkpointing,
        )
        self.num_levels, self.num_regions = num_levels, num_regions
        self.encoder = GlobalEncoder(
            embed_dim,
            num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            num_layers=num_layers,
            activation=activation,
            scale_pos=scale_tokens_pos,
            split_pos=True,
            activation_checkpointing=activation_checkpointing,
        )
        self.sampler = KeypointSampler(
            embed_dim, num_levels=num_levels, num_points=num_points, temperature=temperature
        )

    def check(self, assembly: Assembly) -> None:
        """Check as ``GlobalDecoder`` does, and check that points are embedded like cells.

        Raises:
            ValueError: the message says what to change.
        """
        super().check(assembly)
        for name, own in (("temperature", self.sampler.temperature), ("offset", -0.5)):
            got = getattr(assembly.position_embedding, name, own)
            if got != own:
                raise ValueError(
                    f"InterleavedDecoder embeds points like cell centers, with "
                    f"temperature {self.sampler.temperature}: position_embedding.{name} must be "
                    f"{own}, got {got}. Set model.position_embedding.{name} or "
                    "model.decoder.temperature."
                )

    def forward(
        self,
        queries: Queries,
        memory: MultiScaleFeatures,
        heads: Heads,
        *,
        record: Collection[str] = (),
    ) -> DecoderOutput:
        """Encode and decode; see ``GlobalDecoder.forward``."""
        decoded = super().forward(queries, memory, heads, record=record)
        coarsest = memory.whole_levels((self.num_levels - 1,))
        return replace(decoded, selections=(coarsest,) * self.num_layers)

    def _reads(
        self, queries: Queries, memory: MultiScaleFeatures, heads: Heads
    ) -> Callable[[int, Tensor, Tensor], Readable]:
        """Each call of the result runs an encoder layer."""
        padding, coarsest = memory.padding_if_any, memory.level(self.num_levels - 1)
        if padding is not None:
            memory = memory.with_tokens(memory.tokens.masked_fill(padding[..., None], 0.0))
        everything = coarsest.all_tokens
        maps: list[MultiScaleFeatures] = []  # after each layer

        def reads(index: int, x: Tensor, reference: Tensor) -> Readable:
            given = maps[-1] if maps else coarsest
            if index > 1:
                given = given.with_tokens(given.tokens + maps[0].tokens)
            if index > 0:
                regions = self._regions(index, x, reference, queries, heads)
                given = replace(given, pooled=self._sampled(*regions, memory, everything))
            layer = self.encoder.layers[index]
            encoded = self.encoder.run((layer,), given, (everything,)).memory
            maps.append(replace(encoded, pooled=None))
            return encoded.readable()

        return reads

    def _regions(
        self, index: int, x: Tensor, reference: Tensor, queries: Queries, heads: Heads
    ) -> tuple[Float[Tensor, "B R C"], Float[Tensor, "B R 4"], Bool[Tensor, "B R"] | None]:
        """The best queries after ``index`` layers, their boxes, and a mask of valid ones."""
        matching, head = slice(queries.num_denoising, None), heads.decoder(index - 1)
        x, reference = x[:, matching], reference[:, matching]
        valid = None if queries.valid is None else queries.valid[:, matching]
        with torch.no_grad():
            shown = x if self.refine else self.norm(x)
            # for equal scores, the first query comes first on any device
            falling = self._scores(shown, head, valid).sort(dim=1, descending=True, stable=True)
            chosen = falling.indices[:, : self.num_regions]
            boxes = gather_rows(reference, chosen)
            if not self.refine:
                logits = inverse_sigmoid(boxes, self.eps)
                boxes = head.box_logits(gather_rows(shown, chosen), logits).sigmoid()
        return gather_rows(x, chosen), boxes, None if valid is None else valid.gather(1, chosen)

    def _scores(self, x: Tensor, head: Head, valid: Tensor | None) -> Float[Tensor, "B Q"]:
        """The best class logit of each query; fillers come last."""
        scores = class_logits(head.logits(x), softmax=head.softmax).amax(-1)
        return scores if valid is None else scores.masked_fill(~valid, float("-inf"))

    def _sampled(
        self,
        x: Tensor,
        boxes: Tensor,
        valid: Tensor | None,
        memory: MultiScaleFeatures,
        everything: TokenSelection,
    ) -> PooledTokens:
        """The sampled tokens of the boxes; tokens of fillers are masked."""
        tokens, pos = self.sampler(x, boxes, memory)
        if valid is not None:
            valid = valid.repeat_interleave(self.sampler.num_points, dim=1)
        return PooledTokens(tokens, pos, shares=None, valid=valid, kept=everything)

    def spread_mass(
        self, masses: Sequence[Tensor], memory: MultiScaleFeatures
    ) -> Float[Tensor, "B N"]:
        """See ``GlobalDecoder``; attention to sampled tokens, which have no cell, is left out."""
        length = memory.level_lengths[-1]
        level = reduce(torch.add, [mass[:, :length] for mass in masses])
        return F.pad(level, (memory.num_tokens - length, 0))

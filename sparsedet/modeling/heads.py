"""Prediction heads and the token embedding, owned by the detector and passed to the stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.mlp import MLP
from sparsedet.layers.precision import in_float32
from sparsedet.modeling.stages import MultiScaleFeatures, Prediction

# Box logit of the released code for a token whose proposal leaves the image: its sigmoid is 1
# whatever the head adds, and it is finite.
_OUTSIDE_LOGIT = 1e4


def require_classes(num_classes: int, owner: str) -> None:
    """Refuse an invalid number of classes, such as None before the data set was read.

    Args:
        num_classes: the argument.
        owner: name of the class that takes it.

    Raises:
        ValueError: saying what to set.
    """
    key = "model.num_classes, or dataset.num_classes where the config refers to it"
    require_positive(num_classes, f"{owner}.num_classes", key=key)


class Head(nn.Module):
    """Class logits and boxes of queries or tokens (Deformable DETR, section A.3).

    Args:
        embed_dim: channels of the input.
        num_classes: class logits.
        size_bias: initial bias of the two size logits. In the paper it is -2 for boxes that are not
            relative to a box, and 0 for others.
        softmax: add a "no object" logit as the last one, for a softmax over the classes (DETR,
            section 3.1). Initial boxes are then random, as in the released code of DETR. Otherwise
            they equal their references, and initial class probabilities are 1 %.
    """

    def __init__(
        self, embed_dim: int, num_classes: int, *, size_bias: float = 0.0, softmax: bool = False
    ) -> None:
        super().__init__()
        require_classes(num_classes, "Head")
        self.class_embed = nn.Linear(embed_dim, num_classes)
        self.no_object = nn.Linear(embed_dim, 1) if softmax else None
        self.softmax = softmax
        self.box_embed = MLP(embed_dim, 4, hidden_dim=embed_dim, num_layers=3)
        if softmax:
            return
        nn.init.constant_(self.class_embed.bias, -math.log(99.0))
        last = self.box_embed.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[2:], size_bias)

    def logits(self, x: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q classes"]:
        """Class logits in fp32, also under autocast (ties in half precision change a top-k)."""
        logits = in_float32(self.class_embed, x)
        if self.no_object is None:
            return logits
        return torch.cat((logits, in_float32(self.no_object, x)), dim=-1)

    def box_logits(
        self, x: Float[Tensor, "B Q C"], reference: Float[Tensor, "B Q D"]
    ) -> Float[Tensor, "B Q 4"]:
        """Box logits: the output for ``x``, added to the logits of a point or a box."""
        delta = self.box_embed(x.to(self.class_embed.weight.dtype)).float()
        if reference.shape[-1] == 4:
            return delta + reference
        return torch.cat((delta[..., :2] + reference, delta[..., 2:]), dim=-1)

    def forward(
        self,
        x: Float[Tensor, "B Q C"],
        reference: Float[Tensor, "B Q D"],
        valid: Bool[Tensor, "B Q"] | None = None,
        *,
        class_agnostic: bool = False,
    ) -> Prediction:
        """Predict.

        Args:
            x: queries or tokens.
            reference: **logits** of the points (x, y) or boxes that the boxes are relative to.
            valid: passed on to the prediction.
            class_agnostic: passed on to the prediction.
        """
        boxes = self.box_logits(x, reference).sigmoid()
        return Prediction(self.logits(x), boxes, valid, class_agnostic, self.softmax)


@runtime_checkable
class TokenEmbedder(Protocol):
    """What most scorers need of ``heads``: any object that embeds tokens."""

    def token_embedding(
        self, features: MultiScaleFeatures, *, with_pos: bool
    ) -> Float[Tensor, "B N C"]:
        """Embedded tokens, with the position embedding added first if asked for."""
        ...


class TokenEmbedding(nn.Module):
    """Linear + LayerNorm on masked tokens: the input of proposals and of token scorers.

    Sparse DETR and Focus-DETR use the same instance for both. Outside of a detector, it can be
    passed to a scorer as its ``heads``.

    Args:
        embed_dim: input and output channels.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(
        self, tokens: Float[Tensor, "B N C"], masked: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "B N C"]:
        """Embed ``tokens``; ``masked`` ones enter as zero. None = no token is masked.

        Computed in fp32, also under autocast, because token scores are made from the result.
        """
        if masked is not None:
            tokens = tokens.masked_fill(masked[..., None], 0.0)
        return in_float32(self.norm, in_float32(self.linear, tokens))

    def token_embedding(
        self, features: MultiScaleFeatures, *, with_pos: bool
    ) -> Float[Tensor, "B N C"]:
        """Embedded tokens; padding enters as zero.

        Args:
            features: the map.
            with_pos: add the position embedding first (scorers do, proposals do not).
        """
        tokens = features.tokens + features.pos if with_pos else features.tokens
        return self(tokens, features.padding_if_any)


def require_heads(heads: Any, part: object, *names: str, mend: str = "") -> None:
    """Refuse heads that lack what a part needs, such as None.

    Args:
        heads: the heads that the part was called with.
        part: the part that was called.
        names: attributes that it needs.
        mend: what to do instead of passing such heads.

    Raises:
        ValueError: an attribute is missing; the message says what to do.
    """
    missing = [name for name in names if not hasattr(heads, name)]
    if missing:
        owner, wanted = type(part).__name__, " and ".join(missing)
        got = "None" if heads is None else type(heads).__name__
        raise ValueError(
            f"{owner} must be called with heads that have {wanted}, got {got}. Pass the heads of "
            f"the detector, sparsedet.modeling.Heads or an object with {wanted}{mend}."
        )


class Heads(nn.Module):
    """All heads of a detector. The detector creates those that its parts need.

    Args:
        embed_dim: channels.
        num_classes: class logits of every head.
        size_biases: ``Head.size_bias`` of each decoder head; a single entry = all layers share one
            head.
        proposal: create the first-stage head.
        num_encoder: encoder layers with an auxiliary head, counted from the first.
        scorer: create a head for a scorer that is supervised as a detector.
        token_embedding: create the token embedding.
        unmasked_border: treat tokens whose proposal leaves the image as the released code does:
            their features enter the token embedding as zero, their box is (1, 1, 1, 1) and they may
            be selected as proposals. By default they are scored by their features and never
            proposed.
        softmax: see ``Head``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        *,
        size_biases: Sequence[float],
        proposal: bool = False,
        num_encoder: int = 0,
        scorer: bool = False,
        token_embedding: bool = False,
        unmasked_border: bool = False,
        softmax: bool = False,
    ) -> None:
        super().__init__()
        self.unmasked_border = unmasked_border
        make = partial(Head, embed_dim, num_classes, softmax=softmax)
        self.decoder_heads = nn.ModuleList(make(size_bias=bias) for bias in size_biases)
        self.encoder_heads = nn.ModuleList(make() for _ in range(num_encoder))
        self.proposal_head = make() if proposal else None
        self.scorer_head = make() if scorer else None
        self.embedding = TokenEmbedding(embed_dim) if token_embedding else None

    def decoder(self, layer: int) -> Head:
        """Head of a decoder layer, -1 = the last; the same one for all layers if it is shared."""
        return cast(Head, self.decoder_heads[layer % len(self.decoder_heads)])

    def encoder(self, layer: int) -> Head:
        """Auxiliary head of an encoder layer."""
        return cast(Head, self.encoder_heads[layer])

    @property
    def num_encoder(self) -> int:
        """Encoder layers that have an auxiliary head."""
        return len(self.encoder_heads)

    @property
    def proposal(self) -> Head:
        """First-stage head.

        Raises:
            ValueError: there is no such head.
        """
        if self.proposal_head is None:
            raise ValueError("Heads.proposal must be True for a first stage, got False. Set it.")
        return self.proposal_head

    @property
    def scorer(self) -> Head:
        """Head of a scorer that is supervised as a detector.

        Raises:
            ValueError: there is no such head.
        """
        if self.scorer_head is None:
            raise ValueError("Heads.scorer must be True for such a scorer, got False. Set it.")
        return self.scorer_head

    def proposals(self, features: MultiScaleFeatures) -> tuple[Tensor, Tensor]:
        """Box logits ``[B N 4]`` of the tokens, and a mask ``[B N]`` of valid proposals."""
        boxes, valid = features.proposals()
        if not self.unmasked_border:
            return boxes, valid
        outside = ~valid & ~features.padding_mask
        return boxes.masked_fill(outside[..., None], _OUTSIDE_LOGIT), ~features.padding_mask

    def token_embedding(
        self, features: MultiScaleFeatures, *, with_pos: bool
    ) -> Float[Tensor, "B N C"]:
        """Embedded tokens.

        Args:
            features: the map.
            with_pos: add the position embedding first (scorers do, proposals do not).

        Raises:
            ValueError: there is no token embedding.
        """
        if self.embedding is None:
            raise ValueError("Heads.token_embedding must be True for this part, got False. Set it.")
        if not self.unmasked_border:
            return self.embedding.token_embedding(features, with_pos=with_pos)
        tokens = features.tokens + features.pos if with_pos else features.tokens
        return self.embedding(tokens, ~features.proposals()[1])

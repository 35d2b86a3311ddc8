"""Query initializers: the input queries of the decoder."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparsedet.layers.arguments import require_positive
from sparsedet.layers.attention import draw_matrices
from sparsedet.layers.mlp import MLP
from sparsedet.layers.positional import sine_embedding
from sparsedet.layers.precision import in_float32
from sparsedet.modeling.heads import Heads, require_heads
from sparsedet.modeling.stages import MultiScaleFeatures, Prediction, Queries, class_logits
from sparsedet.modeling.tokens import gather_rows
from sparsedet.registry import QUERY_INITIALIZERS


def _check_count(module: nn.Module, num_queries: int) -> None:
    name = f"{type(module).__name__}.num_queries"
    require_positive(num_queries, name, key="model.query_initializer.num_queries")


@QUERY_INITIALIZERS.register()
class LearnedQueries(nn.Module):
    """Learned content and position; the reference point is predicted from the position.

    Deformable DETR, section 4.1 (one-stage).

    Args:
        embed_dim: channels.
        num_queries: queries.
    """

    needs_proposals = False
    reference_dim = 2
    provides_pos = True

    def __init__(self, embed_dim: int = 256, num_queries: int = 300) -> None:
        super().__init__()
        _check_count(self, num_queries)
        self.embed_dim = embed_dim
        self.embedding = nn.Embedding(num_queries, 2 * embed_dim)
        self.reference_points = nn.Linear(embed_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(
        self, memory: MultiScaleFeatures, heads: Heads | None = None
    ) -> tuple[Queries, None]:
        """The same queries for every image; there is no first-stage prediction."""
        batch = memory.batch_size
        pos, content = self.embedding.weight.chunk(2, dim=-1)
        reference = in_float32(self.reference_points, pos).sigmoid()
        queries = Queries(
            content=content.expand(batch, -1, -1),
            reference=reference.expand(batch, -1, -1),
            pos=pos.expand(batch, -1, -1),
        )
        return queries, None


@QUERY_INITIALIZERS.register()
class PositionQueries(nn.Module):
    """Learned positions; the initial content is 0 (DETR, section A.3).

    Predicted boxes are absolute: the reference is the box (0.5, 0.5, 0.5, 0.5), whose logits are 0.
    With ``points``, the reference is a point predicted from the position (Conditional DETR, section
    3.3).

    Args:
        embed_dim: channels.
        num_queries: queries.
        points: predict a point from the position.
    """

    needs_proposals = False
    provides_pos = True

    def __init__(
        self, embed_dim: int = 256, num_queries: int = 100, *, points: bool = False
    ) -> None:
        super().__init__()
        _check_count(self, num_queries)
        self.embed_dim, self.reference_dim = embed_dim, 2 if points else 4
        self.embedding = nn.Embedding(num_queries, embed_dim)
        self.point_mlp = MLP(embed_dim, 2, hidden_dim=embed_dim, num_layers=2) if points else None
        if self.point_mlp is not None:
            draw_matrices(self.point_mlp)

    def forward(
        self, memory: MultiScaleFeatures, heads: Heads | None = None
    ) -> tuple[Queries, None]:
        """The same queries for every image; there is no first-stage prediction."""
        pos, batch = self.embedding.weight, memory.batch_size
        if self.point_mlp is None:
            reference = pos.new_full((len(pos), 4), 0.5, dtype=torch.float32)
        else:
            reference = in_float32(self.point_mlp, pos).sigmoid()
        content, reference, pos = (
            x.expand(batch, -1, -1) for x in (torch.zeros_like(pos), reference, pos)
        )
        return Queries(content=content, reference=reference, pos=pos), None


@QUERY_INITIALIZERS.register()
class AnchorQueries(nn.Module):
    """Learned content and learned boxes; the decoder makes positions from the boxes.

    The logits of the boxes are initialized from a normal distribution, as in the released code of
    DAB-DETR.

    DAB-DETR, section 4.2, as DN-DETR uses it: the last channel of the content is 0, that of
    denoising queries is 1 (the indicator of section 4.3 there).

    Args:
        embed_dim: channels.
        num_queries: boxes, and queries unless there are patterns.
        num_patterns: number of learned contents, each combined with every box: ``num_patterns *
            num_queries`` queries, grouped by pattern (Anchor DETR, section 3.2). 0 = the content is
            0, as in DAB-DETR; None = every box has its own content.
        indicator: the last channel of the content is 0. Otherwise it is learned, too.

    Raises:
        ValueError: for numbers that are not positive integers; 0 patterns are allowed.
    """

    needs_proposals = False
    reference_dim = 4
    provides_pos = False

    def __init__(
        self,
        embed_dim: int = 256,
        num_queries: int = 300,
        *,
        num_patterns: int | None = None,
        indicator: bool = True,
    ) -> None:
        super().__init__()
        _check_count(self, num_queries)
        if num_patterns not in (None, 0):
            name = "AnchorQueries.num_patterns"
            require_positive(num_patterns, name, key="model.query_initializer.num_patterns")
        self.embed_dim, self.num_patterns = embed_dim, num_patterns
        contents = num_queries if num_patterns is None else num_patterns
        width = embed_dim - indicator
        self.embedding = nn.Embedding(contents, width) if contents else None
        self.anchors = nn.Embedding(num_queries, 4)
        if self.embedding is not None and num_patterns is None:
            nn.init.zeros_(self.embedding.weight)

    def forward(
        self, memory: MultiScaleFeatures, heads: Heads | None = None
    ) -> tuple[Queries, None]:
        """The same queries for every image; there is no first-stage prediction."""
        batch, reference = memory.batch_size, self.anchors.weight.float().sigmoid()
        if self.embedding is None:
            content = self.anchors.weight.new_zeros(len(reference), self.embed_dim)
        else:
            content = self.embedding.weight
            content = nn.functional.pad(content, (0, self.embed_dim - content.shape[1]))
        if self.num_patterns:
            content = content.repeat_interleave(len(reference), dim=0)
            reference = reference.repeat(self.num_patterns, 1)
        expanded = (x.expand(batch, -1, -1) for x in (content, reference))
        return Queries(*expanded, pos=None), None


class _ProposalQueries(nn.Module):
    """Queries from the best-scored first-stage proposals."""

    needs_proposals = True
    reference_dim = 4
    provides_pos = True

    def __init__(
        self, num_queries: int, *, embed_dim: int, pos_dim: int, class_agnostic: bool
    ) -> None:
        super().__init__()
        _check_count(self, num_queries)
        self.embed_dim, self.num_queries = embed_dim, num_queries
        self.class_agnostic = class_agnostic
        self.pos_features = embed_dim // 2
        self.pos_linear = nn.Linear(4 * self.pos_features, pos_dim)
        self.pos_norm = nn.LayerNorm(pos_dim)
        nn.init.xavier_uniform_(self.pos_linear.weight)
        nn.init.zeros_(self.pos_linear.bias)

    def _propose(
        self, memory: MultiScaleFeatures, heads: Heads
    ) -> tuple[Prediction, Int[Tensor, "B Q"], Float[Tensor, "B Q 4"], Bool[Tensor, "B Q"] | None]:
        """The first-stage prediction, and the best proposals.

        The loss needs all tokens. Without a loss, boxes are computed only for the best ones.

        Returns:
            The prediction; token indices, boxes without gradient, and a mask that is False at
            fillers.
        """
        require_heads(heads, self, "proposals", "token_embedding", "proposal")
        boxes, valid = heads.proposals(memory)
        tokens = heads.token_embedding(memory, with_pos=False)
        logits, softmax = heads.proposal.logits(tokens), heads.proposal.softmax
        ranked = class_logits(logits.detach(), softmax=softmax)
        scores = ranked[..., 0] if self.class_agnostic else ranked.amax(-1)
        indices = _best(scores, valid, self.num_queries)
        chosen = valid.gather(1, indices)
        if self.training or torch.is_grad_enabled():
            found = heads.proposal.box_logits(tokens, boxes).sigmoid()
            proposals = Prediction(logits, found, valid, self.class_agnostic, softmax)
            return proposals, indices, gather_rows(found.detach(), indices), chosen
        found = heads.proposal.box_logits(
            gather_rows(tokens, indices), gather_rows(boxes, indices)
        ).sigmoid()
        logits = gather_rows(logits, indices)
        proposals = Prediction(logits, found, chosen, self.class_agnostic, softmax)
        return proposals, indices, found, chosen

    def _position(self, boxes: Float[Tensor, "B Q 4"]) -> Tensor:
        return self.pos_norm(
            self.pos_linear(
                sine_embedding(boxes, self.pos_features).to(self.pos_linear.weight.dtype)
            )
        )


@QUERY_INITIALIZERS.register()
class TwoStageQueries(_ProposalQueries):
    """Content and position are both made from the boxes of the best proposals.

    Deformable DETR, appendix A.4 (two-stage). The first stage only separates objects from
    background: its score is the logit of class 0, and its loss treats every label as 0.

    Args:
        embed_dim: channels.
        num_queries: queries; fewer if the map has fewer tokens.
    """

    def __init__(self, embed_dim: int = 256, num_queries: int = 300) -> None:
        super().__init__(
            num_queries, embed_dim=embed_dim, pos_dim=2 * embed_dim, class_agnostic=True
        )

    def forward(self, memory: MultiScaleFeatures, heads: Heads) -> tuple[Queries, Prediction]:
        """Queries, and the first-stage prediction (for the best tokens only at inference)."""
        proposals, _, boxes, valid = self._propose(memory, heads)
        pos, content = self._position(boxes).chunk(2, dim=-1)
        return Queries(content, boxes, pos, valid), proposals


@QUERY_INITIALIZERS.register()
class EfficientQueries(_ProposalQueries):
    """Content is the encoded token itself, position is made from the proposal's box.

    Efficient DETR, section 3; the "top-k" initialization of Sparse DETR, section 3.4. The content
    keeps its gradient.

    Args:
        embed_dim: channels.
        num_queries: queries; fewer if the map has fewer tokens.
    """

    def __init__(self, embed_dim: int = 256, num_queries: int = 300) -> None:
        super().__init__(num_queries, embed_dim=embed_dim, pos_dim=embed_dim, class_agnostic=False)

    def forward(self, memory: MultiScaleFeatures, heads: Heads) -> tuple[Queries, Prediction]:
        """Queries, and the first-stage prediction (for the best tokens only at inference)."""
        proposals, indices, boxes, valid = self._propose(memory, heads)
        content = gather_rows(memory.tokens, indices)
        return Queries(content, boxes, self._position(boxes), valid), proposals


@QUERY_INITIALIZERS.register()
class MixedQueries(nn.Module):
    """Learned content, boxes of the best proposals (DINO, section 3.4: mixed query selection).

    Each rank of the proposals has its own content. The first-stage prediction covers only the
    selected tokens, with their real classes.

    Args:
        embed_dim: channels.
        num_queries: queries; fewer if the map has fewer tokens.
    """

    needs_proposals = True
    reference_dim = 4
    provides_pos = False

    def __init__(self, embed_dim: int = 256, num_queries: int = 900) -> None:
        super().__init__()
        _check_count(self, num_queries)
        self.embed_dim, self.num_queries = embed_dim, num_queries
        self.embedding = nn.Embedding(num_queries, embed_dim)

    def forward(self, memory: MultiScaleFeatures, heads: Heads) -> tuple[Queries, Prediction]:
        """Queries, and the first-stage prediction on the selected tokens, best first."""
        require_heads(heads, self, "proposals", "token_embedding", "proposal")
        tokens = heads.token_embedding(memory, with_pos=False)
        boxes, valid = heads.proposals(memory)
        with torch.no_grad():
            logits = heads.proposal.logits(tokens)
            scores = class_logits(logits, softmax=heads.proposal.softmax).amax(-1)
        indices = _best(scores, valid, self.num_queries)
        valid = valid.gather(1, indices)
        proposals = heads.proposal(gather_rows(tokens, indices), gather_rows(boxes, indices), valid)
        content = self.embedding.weight[: indices.shape[1]].expand(indices.shape[0], -1, -1)
        return Queries(content, proposals.boxes.detach(), pos=None, valid=valid), proposals


def _best(
    scores: Float[Tensor, "B N"], valid: Bool[Tensor, "B N"], count: int
) -> Int[Tensor, "B Q"]:
    """Indices of the best ``count`` tokens, best first; those that are not valid come last."""
    scores = scores.masked_fill(~valid, float("-inf"))
    return scores.topk(min(count, scores.shape[1]), dim=1).indices

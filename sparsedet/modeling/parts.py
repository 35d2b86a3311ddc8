"""What the detector asks of each family of parts. A class of yours that fits may take its place.

Every part is an ``nn.Module``; these protocols name the attributes and the call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from sparsedet.modeling.heads import Head, Heads
from sparsedet.modeling.stages import (
    DecoderOutput,
    DenoisingOutput,
    EncoderOutput,
    MultiScaleFeatures,
    NoisedTargets,
    Prediction,
    Queries,
    Targets,
    TokenScores,
    TokenSelection,
)


@runtime_checkable
class Neck(Protocol):
    """Named backbone maps to one map per level.

    Attributes:
        embed_dim: channels of the result.
        strides: pixels per cell of each level, fine to coarse.
    """

    embed_dim: int
    strides: Sequence[int]

    def __call__(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """One ``[B C h w]`` per level, fine to coarse."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Decides how good a token is.

    Attributes:
        needs_token_embedding: it calls ``heads.token_embedding``.
        needs_head: it calls ``heads.scorer`` and returns the prediction for supervision.
        trained_by: class name of the stage term that trains it (another one that trains this
            scorer will do), None if it needs none.
    """

    needs_token_embedding: bool
    needs_head: bool
    trained_by: str | None

    def __call__(
        self, features: MultiScaleFeatures, heads: Heads, targets: Targets | None = None
    ) -> TokenScores:
        """Score every token."""
        ...


@runtime_checkable
class ObjectScorer(Protocol):
    """Decides which of the kept tokens attend to each other in the dual-attention encoder."""

    def __call__(self, tokens: Tensor, logits: Tensor | None, category: Head) -> Tensor:
        """Scores ``[B K]`` of the kept ``tokens[B K C]`` with their token scores (logits)."""
        ...


@runtime_checkable
class Selector(Protocol):
    """Decides how many tokens each encoder layer updates, and which.

    Attributes:
        needs_scorer: it reads the scores.
    """

    needs_scorer: bool

    def __call__(
        self, scores: TokenScores | None, features: MultiScaleFeatures, num_layers: int
    ) -> tuple[TokenSelection, ...]:
        """One selection per encoder layer."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Updates the selected tokens of the map."""

    embed_dim: int
    num_levels: int
    num_layers: int

    def __call__(
        self,
        features: MultiScaleFeatures,
        selections: Sequence[TokenSelection],
        scores: TokenScores | None,
        heads: Heads,
        *,
        aux: bool = False,
    ) -> EncoderOutput:
        """Encode; with ``aux``, also evaluate the auxiliary heads."""
        ...


@runtime_checkable
class QueryInitializer(Protocol):
    """Makes the decoder's queries.

    Attributes:
        needs_proposals: it calls ``heads.proposal``.
        reference_dim: 2 for points, 4 for boxes.
        provides_pos: its queries have positions; otherwise the decoder must make them.
    """

    needs_proposals: bool
    reference_dim: int
    provides_pos: bool

    def __call__(
        self, memory: MultiScaleFeatures, heads: Heads
    ) -> tuple[Queries, Prediction | None]:
        """Queries, and the first-stage prediction if there is one."""
        ...


@runtime_checkable
class Denoising(Protocol):
    """Adds queries that start from noised objects, in training."""

    def sample(self, targets: Targets) -> NoisedTargets:
        """Draw noise."""
        ...

    def prepend(self, queries: Queries, noised: NoisedTargets) -> Queries:
        """Put the noised objects before the matching queries."""
        ...

    def split(
        self, predictions: Sequence[Prediction], noised: NoisedTargets, targets: Targets
    ) -> tuple[tuple[Prediction, ...], DenoisingOutput]:
        """Predictions of the matching queries, and of the noised objects with their matching."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Makes the predictions.

    Attributes:
        refine: boxes of a layer are references of the next.
        makes_pos: it makes the positions of the queries from their references.
    """

    embed_dim: int
    num_levels: int
    num_layers: int
    refine: bool
    makes_pos: bool

    def __call__(
        self,
        queries: Queries,
        memory: MultiScaleFeatures,
        heads: Heads,
        *,
        record: Collection[str] = (),
    ) -> DecoderOutput:
        """Predict in every layer; record what is asked for."""
        ...

"""The protocol of each family of parts; any class that follows it can be used.

Every part is an ``nn.Module`` (loss terms and the criterion need not be); these protocols name the
attributes and the call. In addition, a part of any family may have

- ``embed_dim`` and ``num_levels``, which must then equal those of the detector;
- ``check(assembly)``, called once by the detector's constructor: it raises a ``ValueError`` that
  says what to change if the part does not fit the others;
- ``not_exportable``: why the part cannot be exported and what to set instead, as the rest of a
  sentence that starts with the name of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sparsedet.modeling.heads import Head, Heads
from sparsedet.modeling.stages import (
    DecoderOutput,
    DenoisingOutput,
    DetectorOutput,
    EncoderOutput,
    Glance,
    MultiScaleFeatures,
    NoisedTargets,
    PooledTokens,
    Prediction,
    Queries,
    Size,
    Targets,
    TokenScores,
    TokenSelection,
)


@runtime_checkable
class Backbone(Protocol):
    """Images to named maps.

    A backbone with ``takes_coarsest = True`` can skip its coarsest maps: if they are not needed, it
    is called with ``coarsest=``, the name of the coarsest map to compute.
    """

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """The named ``[B c h w]`` of normalized images ``[B 3 H W]``."""
        ...


@runtime_checkable
class Neck(Protocol):
    """Named backbone maps to one map per level.

    A neck with ``takes_num_levels = True`` can skip its coarsest levels: if they are not needed, it
    is called with ``num_levels=``, the number of finest levels to compute. Its
    ``coarsest_map(num_levels)`` is the coarsest backbone map that these levels need.

    Attributes:
        embed_dim: channels of the result.
        strides: pixels per cell of each level, fine to coarse.
    """

    embed_dim: int
    strides: Sequence[int]

    def __call__(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """One ``[B C h w]`` per level, fine to coarse."""
        ...


class TokenTarget:
    """What an unmatched term teaches a scorer to predict.

    Subclasses are kinds of targets and are not instantiated. A scorer's ``learns`` is the kind that
    it needs, a term's ``teaches`` the kind that it gives. Your own method declares its own kind.
    """


class DecoderAttention(TokenTarget):
    """The tokens that the decoder looks at most (Sparse DETR, section 3.3)."""


class Foreground(TokenTarget):
    """The tokens that lie in objects (Focus-DETR, section 3.2)."""


@runtime_checkable
class Scorer(Protocol):
    """Scores the tokens: a higher score means a more important token.

    A scorer with ``needs_images = True`` is also called with ``images=``, normalized and
    zero-padded; ``detect`` has them, ``detect_features`` only if they are passed.

    Attributes:
        needs_token_embedding: it calls ``heads.token_embedding``.
        needs_head: it calls ``heads.scorer`` and returns the prediction for supervision.
        learns: the kind of target that an unmatched term must teach it; None if it needs no such
            term.
    """

    needs_token_embedding: bool
    needs_head: bool
    learns: type[TokenTarget] | None

    def __call__(
        self, features: MultiScaleFeatures, heads: Any, targets: Targets | None = None
    ) -> TokenScores:
        """Score every token; ``heads`` are the detector's or any object with its methods."""
        ...


@runtime_checkable
class ObjectScorer(Protocol):
    """Decides which of the kept tokens attend to each other in the dual-attention encoder."""

    def __call__(self, tokens: Tensor, logits: Tensor | None, category: Head) -> Tensor:
        """Scores ``[B K]`` of the kept ``tokens[B K C]`` with their token scores (logits).

        ``category`` has ``logits(tokens)``, which gives class logits ``[B K classes]``; it may have
        ``softmax``, see ``Head``.
        """
        ...


@runtime_checkable
class Selector(Protocol):
    """Decides how many tokens each encoder layer updates, and which.

    A selector whose counts depend on the content of an image has ``depends_on_image = True``; one
    that must see scores before it can be used has ``calibrate``, see ``CalibratedSelector``.

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
class Regions(Protocol):
    """Decides which parts of the pictures the backbone sees, and at which resolution.

    Attributes:
        scorer: scores the tokens of the glance; None if no scores are needed. The terms of
            ``SetCriterion.regions`` train it.
    """

    scorer: Scorer | None

    def strides(self, own: Sequence[int]) -> tuple[int, ...]:
        """Pixels per cell of each level of the result, given the strides ``own`` of the neck."""
        ...

    def __call__(
        self,
        images: Tensor,
        image_sizes: Sequence[Size],
        *,
        see: Callable[[Tensor, int], Sequence[Tensor]],
        embed: Callable[..., MultiScaleFeatures],
        strides: Sequence[int],
        heads: Any,
        targets: Targets | None = None,
    ) -> tuple[MultiScaleFeatures, Glance]:
        """Features of the pictures, some cells of which may be absent, and the glance.

        Args:
            images: normalized and zero-padded, ``[B 3 H W]``.
            image_sizes: (h, w) of each unpadded image.
            see: runs backbone and neck: images ``[b 3 h w]`` of any size and a number of levels to
                one map for each of that many finest levels.
            embed: as ``TokenSparseDetector.embed``.
            strides: pixels per cell of the levels that ``see`` gives.
            heads: for the scorer.
            targets: in training, and for scorers that use them.
        """
        ...

    def glance(
        self,
        images: Tensor,
        image_sizes: Sequence[Size],
        *,
        see: Callable[[Tensor, int], Sequence[Tensor]],
        embed: Callable[..., MultiScaleFeatures],
        strides: Sequence[int],
        heads: Any,
        targets: Targets | None = None,
    ) -> tuple[Sequence[Tensor], Glance]:
        """The first part of a call: the maps of the glance, and the glance itself."""
        ...


@runtime_checkable
class Pooler(Protocol):
    """Makes tokens that summarize those which the selections of a pass leave out."""

    def __call__(
        self, features: MultiScaleFeatures, selections: Sequence[TokenSelection]
    ) -> PooledTokens:
        """The same number of tokens for every image."""
        ...


@runtime_checkable
class CalibratedSelector(Selector, Protocol):
    """A selector that needs to know the distribution of the scores of some images."""

    def forget(self) -> None:
        """Discard the calibration."""
        ...

    def calibrate(self, scores: TokenScores | None, features: MultiScaleFeatures) -> None:
        """Add the images of a batch."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Updates the selected tokens of the map.

    Attributes:
        num_layers: layers, each with its own selection.
    """

    embed_dim: int
    num_layers: int

    @property
    def num_levels(self) -> int | None:
        """Feature levels; None = any number."""
        ...

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
        refine: boxes of a layer are the references of the next.
        makes_pos: it makes the positions of the queries from their references.

    A decoder that reads the pooled tokens of the memory has ``reads_pooled = True``.
    """

    embed_dim: int
    num_layers: int
    refine: bool
    makes_pos: bool

    @property
    def num_levels(self) -> int | None:
        """Feature levels; None = any number."""
        ...

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


@runtime_checkable
class UnmatchedTerm(Protocol):
    """A loss on anything that the detector produced, apart from matched predictions.

    A term may also have

    - ``teaches``: the kind of target (``TokenTarget``) that it gives to the scorer; its loss is
      then called ``"scorer/<name>"``, otherwise ``"<name>"``;
    - ``requires``: what the detector must record for it, such as ``{"token_mass"}``.
    """

    name: str
    weight: float

    def __call__(self, output: DetectorOutput, targets: Targets) -> Tensor:
        """The unweighted loss."""
        ...


@runtime_checkable
class Criterion(Protocol):
    """The training objective.

    It may have ``softmax``: True = a softmax over the classes and "no object", see ``Head``.
    Without it, each class has an independent sigmoid.
    """

    @property
    def requires(self) -> frozenset[str]:
        """What the detector must record."""
        ...

    def __call__(self, output: DetectorOutput, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses; their sum is the objective."""
        ...


@dataclass(frozen=True)
class Assembly:
    """The parts of one detector and their shared sizes, for the checks of the parts.

    Attributes:
        embed_dim: channels of all parts.
        num_levels: feature levels of all parts.
        num_classes: classes.
    """

    embed_dim: int
    num_levels: int
    num_classes: int
    backbone: Backbone
    neck: Neck
    encoder: Encoder
    query_initializer: QueryInitializer
    decoder: Decoder
    selector: Selector
    scorer: Scorer | None
    denoising: Denoising | None
    position_embedding: nn.Module
    criterion: Criterion
    regions: Regions | None = None

    @property
    def at_glance(self) -> Assembly:
        """The assembly from the view of the scorer of the regions and the terms that train it."""
        if self.regions is None:
            return replace(self, scorer=None)
        return replace(self, scorer=self.regions.scorer, num_levels=len(self.neck.strides))

    def check(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            ValueError: the message says what to change.
        """
        parts = {each.name: getattr(self, each.name) for each in fields(self)[3:]}
        for name in ("scorer", "denoising", "regions"):
            if parts[name] is None:  # the only ones that may be absent
                del parts[name]
        for name, part in parts.items():
            _check_protocol(name, part)
        for name, part in parts.items():
            if name != "backbone":  # its widths concern only the neck
                self._check_sizes(name, part)
        for part in parts.values():
            check_part(part, self)

    def _check_sizes(self, name: str, part: Any) -> None:
        levels = getattr(part, "num_levels", None)
        if name == "neck":
            strides = part.strides
            levels = len(strides if self.regions is None else self.regions.strides(strides))
            if self.regions is not None and levels != self.num_levels:
                raise ValueError(
                    f"TokenSparseDetector.num_levels must be {levels}, as many as the regions make "
                    f"of the neck's {len(strides)}, got {self.num_levels}. Set model.num_levels."
                )
        sizes = {"embed_dim": getattr(part, "embed_dim", None), "num_levels": levels}
        for size, got in sizes.items():
            expected = getattr(self, size)
            if got not in (None, expected):  # some parts accept any
                raise ValueError(
                    f"TokenSparseDetector.{name}: {size} must be {expected} as in the detector, "
                    f"got {got}. Set model.{name}.{size} to '${{..{size}}}'."
                )


_PROTOCOLS: dict[str, type] = {
    "neck": Neck,
    "encoder": Encoder,
    "query_initializer": QueryInitializer,
    "decoder": Decoder,
    "criterion": Criterion,
    "selector": Selector,
    "scorer": Scorer,
    "denoising": Denoising,
    "regions": Regions,
}


def _check_protocol(name: str, part: Any) -> None:
    family = _PROTOCOLS.get(name)
    if family is None and not callable(part):
        raise ValueError(
            f"TokenSparseDetector.{name} must be a module, got {part!r}. Set model.{name}."
        )
    if family is not None and not isinstance(part, family):
        raise ValueError(
            f"TokenSparseDetector.{name} must be a {family.__name__} (see "
            f"sparsedet.modeling.parts), got {type(part).__name__}. Set model.{name}."
        )


def check_part(part: Any, assembly: Assembly) -> None:
    """Call the ``check`` of a part, if it has one.

    Raises:
        ValueError: the part does not fit the others, or its ``check`` fails.
    """
    if isinstance(part, type):
        raise ValueError(
            f"TokenSparseDetector takes built parts, got the class {part.__name__}. Build it."
        )
    check = getattr(part, "check", None)
    if check is None:
        return
    try:
        check(assembly)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{type(part).__name__}.check, which gets the assembly of all parts, fails with "
            f"{type(error).__name__}: {error}. Correct it."
        ) from error

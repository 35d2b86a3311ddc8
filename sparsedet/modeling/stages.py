"""The nouns that the stages of a detector hand to each other.

Axes: ``B`` images, ``L`` levels, ``N`` tokens over all levels (fine to coarse, row by row), ``K``
kept tokens, ``Q`` queries, ``C`` channels, ``M`` heads, ``P`` points. Boxes are cxcywh in [0, 1] of
the unpadded image unless a name says otherwise. Masks are named for what True means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsedet.layers.constants import constants
from sparsedet.modeling.features import MultiScaleFeatures, Size, flatten_maps, level_size

__all__ = [
    "DecoderOutput",
    "DenoisingOutput",
    "DetectorOutput",
    "EncoderOutput",
    "Matching",
    "MultiScaleFeatures",
    "NoisedTargets",
    "ObjectTokens",
    "Prediction",
    "Queries",
    "Size",
    "Targets",
    "TokenScores",
    "TokenSelection",
    "class_logits",
    "filler_mask",
    "flatten_maps",
    "level_size",
]


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch.

    Attributes:
        boxes: one ``[n 4]`` tensor per image.
        labels: one ``[n]`` tensor of contiguous class indices per image.
    """

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Objects of each image."""
        return tuple(len(labels) for labels in self.labels)


@dataclass(frozen=True)
class Prediction:
    """What a head says about a set of queries or tokens.

    Attributes:
        logits: class logits.
        boxes: cxcywh in [0, 1] of the unpadded image.
        valid: False = a filler that must be neither matched nor scored; None = all valid.
        class_agnostic: True = trained with every label as class 0 (first-stage proposals of
            Deformable DETR).
        softmax: True = the classes exclude each other, and the last logit is that of no object
            (DETR); False = every class is a sigmoid of its own.
    """

    logits: Float[Tensor, "B Q classes"]
    boxes: Float[Tensor, "B Q 4"]
    valid: Bool[Tensor, "B Q"] | None = None
    class_agnostic: bool = False
    softmax: bool = False

    @property
    def scores(self) -> Float[Tensor, "B Q _"]:
        """Probability of every class, in fp32."""
        logits = self.logits.float()
        return logits.softmax(-1)[..., :-1] if self.softmax else logits.sigmoid()


def class_logits(
    logits: Float[Tensor, "*rows classes"], *, softmax: bool
) -> Float[Tensor, "*rows _"]:
    """Logit of every class's probability, which ranks as the probability and does not saturate.

    Args:
        logits: class logits of a head.
        softmax: see ``Prediction.softmax``.
    """
    if not softmax:
        return logits
    log_p = logits.log_softmax(-1)[..., :-1]
    tiny = torch.finfo(log_p.dtype).eps
    return log_p - torch.log((-torch.expm1(log_p)).clamp(min=tiny))


@dataclass(frozen=True)
class Matching:
    """Which query answers for which object, over all images of a batch.

    Attributes:
        image: image of each pair; pairs of one image follow each other.
        query: query of each pair.
        target: object of each pair, counted in its image.
        boxes: box of the object of each pair.
        labels: its class, 0 for class-agnostic predictions.
    """

    image: Int[Tensor, " n"]
    query: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, " n"]

    def pairs(self, num_images: int) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
        """Queries and their objects, image by image, as the criteria of the DETR family take them.

        This waits for the device.

        Args:
            num_images: images of the batch; those without a pair have two empty tensors.
        """
        counts = self.image.bincount(minlength=num_images).tolist()
        return list(zip(self.query.split(counts), self.target.split(counts), strict=True))


@dataclass(frozen=True)
class TokenScores:
    """How good a token is.

    Attributes:
        logits: score of every token; what padding holds is not defined, selectors mask it.
        prediction: set where the scorer is supervised as a detector.
        weighs: the kept tokens are to be weighted by their scores, which is how a scorer that no
            loss supervises gets a gradient.
    """

    logits: Float[Tensor, "B N"]
    prediction: Prediction | None = None
    weighs: bool = False


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens an encoder layer updates.

    Attributes:
        max_counts: the most tokens that each image keeps, host integers.
        indices: distinct token indices of a row, best first; None = every token.
        valid: False = filler of an image that keeps fewer tokens than its companions; None = no
            fillers.
        weight: factor of every kept token where it enters the encoder; None = 1.
        ranking: selections of one pass with the same number are beginnings of one order of the
            tokens; None = nothing is known of the others.
        exact: whether every image keeps ``max_counts``. False = it may keep fewer, which ``valid``
            alone knows: the host does not wait in a compiled pass or a CUDA graph.
    """

    max_counts: tuple[int, ...]
    indices: Int[Tensor, "B K"] | None = None
    valid: Bool[Tensor, "B K"] | None = None
    weight: Float[Tensor, "B K"] | None = None
    ranking: int | None = None
    exact: bool = True

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept tokens of each image; unless they are ``exact``, this waits for the device."""
        if self.exact:
            return self.max_counts
        assert self.valid is not None
        return tuple(self.valid.sum(1).tolist())

    def _rows(self, x: Tensor) -> Tensor:
        assert self.indices is not None
        if x.shape[0] == 1:
            return self.indices[0]
        first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
        return (self.indices + first).flatten()

    def gather(self, x: Tensor) -> Tensor:
        """Rows ``[B K ...]`` of the kept tokens of ``x[B N ...]``."""
        if self.indices is None:
            return x
        rows = x.flatten(0, 1).index_select(0, self._rows(x))
        return rows.unflatten(0, self.indices.shape)

    def scatter(
        self, base: Float[Tensor, "B N C"], update: Float[Tensor, "B K C"]
    ) -> Float[Tensor, "B N C"]:
        """A copy of ``base`` in which the kept tokens hold ``update``; fillers change nothing."""
        if self.indices is None:
            return update
        return self.scatter_(base.clone(memory_format=torch.contiguous_format), update)

    def scatter_(
        self, base: Float[Tensor, "B N C"], update: Float[Tensor, "B K C"]
    ) -> Float[Tensor, "B N C"]:
        """Write ``update`` into the kept tokens of ``base``, which is contiguous; fillers stay.

        Only for selections with indices.
        """
        if self.valid is not None:
            update = torch.where(self.valid[..., None], update, self.gather(base))
        flat = base.view(-1, base.shape[-1])
        flat.index_copy_(0, self._rows(base), update.flatten(0, 1).to(base.dtype))
        return base

    def prefix(self, counts: Sequence[int]) -> TokenSelection:
        """The best ``counts[i]`` of the tokens kept of image i (a cascade is nested prefixes)."""
        assert self.indices is not None and self.exact
        counts = tuple(counts)
        width = max(counts)
        return TokenSelection(
            counts,
            self.indices[:, :width],
            filler_mask(counts, width, self.indices.device),
            None if self.weight is None else self.weight[:, :width],
            self.ranking,
        )

    def begins(self, other: TokenSelection) -> bool:
        """Whether the tokens are known to be the first of those of ``other``."""
        if self.indices is None or other.indices is None:
            return False
        same_order = self.ranking is not None and self.ranking == other.ranking
        return same_order and all(
            own <= most for own, most in zip(self.max_counts, other.max_counts, strict=True)
        )

    def first_rows(self, rows: Tensor) -> Tensor:
        """Those of the ``rows[B K ...]`` of a selection that this one ``begins`` which it keeps."""
        assert self.indices is not None
        return rows[:, : self.indices.shape[1]]

    def mask(self, num_tokens: int) -> Bool[Tensor, "B N"]:
        """True at the kept tokens. Only for selections with indices."""
        assert self.indices is not None
        kept = torch.ones_like(self.indices, dtype=torch.bool) if self.valid is None else self.valid
        empty = torch.zeros(
            len(self.max_counts), num_tokens, dtype=torch.bool, device=self.indices.device
        )
        return empty.scatter(1, self.indices, kept)


def filler_mask(
    counts: Sequence[int], width: int, device: torch.device
) -> Bool[Tensor, "B K"] | None:
    """True at the first ``counts[i]`` of ``width`` places; None when every place is used."""
    if all(count == width for count in counts):
        return None
    limits = constants(counts, device, torch.int64)
    return torch.arange(width, device=device) < limits[:, None]


@dataclass(frozen=True)
class ObjectTokens:
    """Kept tokens that attend to each other before an encoder layer (Focus-DETR, algorithm 1).

    Attributes:
        kept: the tokens that the layer updates.
        rows: which of them, best rated first; its indices count among the kept tokens.
    """

    kept: TokenSelection
    rows: TokenSelection

    @property
    def selection(self) -> TokenSelection:
        """The same tokens with their indices among all tokens; computed here, not in the pass."""
        if self.kept.indices is None:
            return self.rows
        assert self.rows.indices is not None
        return replace(self.rows, indices=self.kept.indices.gather(1, self.rows.indices))


@dataclass(frozen=True)
class EncoderOutput:
    """Encoded features, and what the encoder says beside them.

    Attributes:
        memory: encoded features.
        aux: predictions of the auxiliary heads.
        objects: one per layer of an encoder whose object tokens attend to each other; else empty.
    """

    memory: MultiScaleFeatures
    aux: tuple[Prediction, ...] = ()
    objects: tuple[ObjectTokens, ...] = ()


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from.

    Attributes:
        content: the queries.
        reference: points (x, y) or boxes, in [0, 1] of the unpadded image.
        pos: position embedding added to the queries in every layer; None = the decoder makes it
            from the references (conditional query positions).
        valid: False = filler of an image with fewer tokens than queries; None = all valid.
        attn_mask: True = the row's query does not see the column's query; None = all see all.
        num_denoising: that many queries come first which stand for noised objects.
    """

    content: Float[Tensor, "B Q C"]
    reference: Float[Tensor, "B Q D"]
    pos: Float[Tensor, "B Q C"] | None
    valid: Bool[Tensor, "B Q"] | None = None
    attn_mask: Bool[Tensor, "Q Q"] | None = None
    num_denoising: int = 0


@dataclass(frozen=True)
class NoisedTargets:
    """Objects with noise, in groups of slots: slot j of a group stands for object j of its image.

    Attributes:
        labels: noised class indices; what unused slots hold is ignored.
        boxes: noised cxcywh, corners in [0, 1]; where they cross, sizes are negative.
        valid: False = unused slot of an image with fewer objects than another of the batch.
        num_groups: groups; each holds as many slots as the image with most objects needs.
    """

    labels: Int[Tensor, "B D"]
    boxes: Float[Tensor, "B D 4"]
    valid: Bool[Tensor, "B D"]
    num_groups: int


@dataclass(frozen=True)
class DenoisingOutput:
    """What the decoder made of the noised objects.

    Attributes:
        predictions: one per decoder layer.
        matching: which slot stands for which object, over all groups.
        num_groups: times that every object appears.
    """

    predictions: tuple[Prediction, ...]
    matching: Matching
    num_groups: int


@dataclass(frozen=True)
class DecoderOutput:
    """Predictions of every decoder layer.

    Attributes:
        predictions: one per layer, for all queries; the last one is the answer.
        token_mass: cross-attention mass of the matching queries on every token, summed over layers
            and heads, without gradient; None when not recorded.
    """

    predictions: tuple[Prediction, ...]
    token_mass: Float[Tensor, "B N"] | None = None


@dataclass(frozen=True)
class DetectorOutput:
    """Everything one pass of the detector produced.

    Attributes:
        decoder: predictions of the decoder layers; ``decoder[-1]`` is the answer.
        features: encoder input.
        memory: encoder output.
        selections: tokens that each encoder layer updated.
        proposals: first-stage prediction, where the query initializer makes one: of all tokens, or
            without gradients of those alone that become queries.
        encoder: predictions of the encoder's auxiliary heads (training only).
        denoising: predictions for noised objects (training only), where there is denoising.
        scores: token scores, where there is a scorer.
        token_mass: see ``DecoderOutput``.
        objects: see ``EncoderOutput``.
    """

    decoder: tuple[Prediction, ...]
    features: MultiScaleFeatures
    memory: MultiScaleFeatures
    selections: tuple[TokenSelection, ...]
    proposals: Prediction | None = None
    encoder: tuple[Prediction, ...] = ()
    denoising: DenoisingOutput | None = None
    scores: TokenScores | None = None
    token_mass: Float[Tensor, "B N"] | None = None
    objects: tuple[ObjectTokens, ...] = ()

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """Kept / valid tokens of each image, the mean over the encoder layers.

        It may wait for the device, see ``TokenSelection.counts``.
        """
        counts = [selection.counts for selection in self.selections]
        return tuple(
            sum(layer[image] for layer in counts) / (len(counts) * total)
            for image, total in enumerate(self.features.num_valid)
        )


for _noun in (
    MultiScaleFeatures, Targets, Prediction, Matching, TokenScores, TokenSelection, ObjectTokens,
    EncoderOutput, Queries, NoisedTargets, DenoisingOutput, DecoderOutput, DetectorOutput,
):  # fmt: skip
    torch.export.register_dataclass(_noun)

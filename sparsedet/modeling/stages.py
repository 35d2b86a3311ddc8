"""The data classes that the stages of a detector pass to each other.

Axes: ``B`` images, ``L`` levels, ``N`` tokens over all levels (fine to coarse, row by row), ``K``
kept tokens, ``Q`` queries, ``C`` channels, ``M`` heads, ``P`` points. Boxes are cxcywh in [0, 1] of
the unpadded image unless a name says otherwise. Masks are named for what ``True`` means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsedet.layers.constants import constants
from sparsedet.modeling.features import (
    MultiScaleFeatures,
    PartialMap,
    Size,
    flatten_maps,
    level_size,
)
from sparsedet.modeling.tokens import (
    PooledTokens,
    TokenSelection,
    filler_mask,
    marked_tokens,
    union,
)

__all__ = [
    "DecoderOutput",
    "DenoisingOutput",
    "DetectorOutput",
    "EncoderOutput",
    "Glance",
    "Matching",
    "MultiScaleFeatures",
    "NoisedTargets",
    "ObjectTokens",
    "PartialMap",
    "PooledTokens",
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
    "marked_tokens",
    "union",
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

    def at_least(self, side: float, image_sizes: Sequence[Size]) -> Targets:
        """The same objects, with boxes enlarged around their centers to a minimum size.

        Args:
            side: minimum width and height, in pixels.
            image_sizes: (h, w) of each unpadded image.
        """
        boxes = []
        for own, (h, w) in zip(self.boxes, image_sizes, strict=True):
            center, size = own.split(2, dim=1)
            least = constants((side / w, side / h), own.device)
            boxes.append(torch.cat((center, size.maximum(least.to(own.dtype))), dim=1))
        return replace(self, boxes=tuple(boxes))


@dataclass(frozen=True)
class Prediction:
    """The output of a head for a set of queries or tokens.

    Attributes:
        logits: class logits.
        boxes: cxcywh in [0, 1] of the unpadded image.
        valid: False = a filler, which is neither matched nor scored; None = all valid.
        class_agnostic: True = every label counts as class 0 in training (first-stage proposals of
            Deformable DETR).
        softmax: True = one softmax over the classes, with "no object" as the last logit (DETR);
            False = an independent sigmoid for each class.
    """

    logits: Float[Tensor, "B Q classes"]
    boxes: Float[Tensor, "B Q 4"]
    valid: Bool[Tensor, "B Q"] | None = None
    class_agnostic: bool = False
    softmax: bool = False

    @property
    def scores(self) -> Float[Tensor, "B Q _"]:
        """Probability of each class, in fp32."""
        logits = self.logits.float()
        return logits.softmax(-1)[..., :-1] if self.softmax else logits.sigmoid()


def class_logits(
    logits: Float[Tensor, "*rows classes"], *, softmax: bool
) -> Float[Tensor, "*rows _"]:
    """Logit of each class probability: it ranks like the probability and does not saturate.

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
    """The assignment of queries to objects, over all images of a batch.

    Attributes:
        image: image index of each pair; the pairs of an image are contiguous.
        query: query index of each pair.
        target: object index of each pair, within its image.
        boxes: box of the object.
        labels: class of the object, 0 for class-agnostic predictions.
    """

    image: Int[Tensor, " n"]
    query: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, " n"]

    def pairs(self, num_images: int) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
        """Queries and their objects for each image, as the criteria of the DETR family expect them.

        Synchronizes with the device.

        Args:
            num_images: images of the batch; an image without pairs gets two empty tensors.
        """
        counts = self.image.bincount(minlength=num_images).tolist()
        return list(zip(self.query.split(counts), self.target.split(counts), strict=True))


@dataclass(frozen=True)
class TokenScores:
    """How important each token is.

    Attributes:
        logits: score of every token. It is undefined for padding and absent tokens, which
            selectors mask.
        prediction: set if the scorer is supervised as a detector.
        weighs: True = kept tokens are multiplied by their scores, so that a scorer without a loss
            of its own receives gradients.
    """

    logits: Float[Tensor, "B N"]
    prediction: Prediction | None = None
    weighs: bool = False


@dataclass(frozen=True)
class ObjectTokens:
    """Kept tokens that attend to each other before an encoder layer (Focus-DETR, algorithm 1).

    Attributes:
        kept: the tokens that the layer updates.
        rows: the object tokens, highest score first, as indices into the kept tokens.
    """

    kept: TokenSelection
    rows: TokenSelection

    @property
    def selection(self) -> TokenSelection:
        """The object tokens as indices into all tokens; computed on access."""
        if self.kept.indices is None:
            return self.rows
        assert self.rows.indices is not None
        return replace(self.rows, indices=self.kept.indices.gather(1, self.rows.indices))


@dataclass(frozen=True)
class EncoderOutput:
    """Output of an encoder.

    Attributes:
        memory: encoded features.
        aux: predictions of the auxiliary heads.
        objects: one per layer if object tokens attend to each other in this encoder; else empty.
    """

    memory: MultiScaleFeatures
    aux: tuple[Prediction, ...] = ()
    objects: tuple[ObjectTokens, ...] = ()


@dataclass(frozen=True)
class Queries:
    """Input queries of a decoder.

    Attributes:
        content: the queries.
        reference: points (x, y) or boxes, in [0, 1] of the unpadded image.
        pos: position embedding added to the queries in every layer; None = the decoder makes it
            from the references (``makes_pos``).
        valid: False = filler in an image with fewer tokens than queries; None = all valid.
        attn_mask: True = the query of the row must not attend to the query of the column; None =
            no mask.
        num_denoising: number of denoising queries, which come first.
    """

    content: Float[Tensor, "B Q C"]
    reference: Float[Tensor, "B Q D"]
    pos: Float[Tensor, "B Q C"] | None
    valid: Bool[Tensor, "B Q"] | None = None
    attn_mask: Bool[Tensor, "Q Q"] | None = None
    num_denoising: int = 0


@dataclass(frozen=True)
class NoisedTargets:
    """Noised objects in groups of slots; slot j of a group is object j of its image.

    Attributes:
        labels: noised class indices; unused slots are ignored.
        boxes: noised cxcywh, with corners in [0, 1]; sizes are negative where corners cross.
        valid: False = unused slot, in an image with fewer objects than another of the batch.
        num_groups: number of groups; each has as many slots as the image with the most objects.
    """

    labels: Int[Tensor, "B D"]
    boxes: Float[Tensor, "B D 4"]
    valid: Bool[Tensor, "B D"]
    num_groups: int


@dataclass(frozen=True)
class DenoisingOutput:
    """Predictions for the noised objects.

    Attributes:
        predictions: one per decoder layer.
        matching: assignment of slots to objects, over all groups.
        num_groups: number of copies of each object.
    """

    predictions: tuple[Prediction, ...]
    matching: Matching
    num_groups: int


@dataclass(frozen=True)
class DecoderOutput:
    """Predictions of every decoder layer.

    Attributes:
        predictions: one per layer, for all queries; the last one is the final prediction.
        token_mass: cross-attention weight of the matching queries on every token, summed over
            layers and heads, without gradient; None if not recorded.
        selections: tokens updated by the encoder layers of an interleaved decoder; else empty.
    """

    predictions: tuple[Prediction, ...]
    token_mass: Float[Tensor, "B N"] | None = None
    selections: tuple[TokenSelection, ...] = ()


@dataclass(frozen=True)
class Glance:
    """Result of the glance at whole pictures: where to look more closely.

    Attributes:
        features: features of the pictures at the resolution of the glance.
        scores: scores of their tokens; None without a scorer.
        tiles: the tiles as a map of one level, whose stride is the side of a tile. Each token is
            one number, the score of the tile (logit).
        looked: the chosen tiles.
    """

    features: MultiScaleFeatures
    scores: TokenScores | None
    tiles: MultiScaleFeatures
    looked: TokenSelection


@dataclass(frozen=True)
class DetectorOutput:
    """Everything that one forward pass of the detector produces.

    Attributes:
        decoder: predictions of the decoder layers; ``decoder[-1]`` is the final prediction.
        features: encoder input.
        memory: encoder output.
        selections: tokens updated by each encoder layer, or by the encoder layers of the decoder if
            the encoder has none.
        proposals: first-stage prediction, if the query initializer makes one. It covers all tokens,
            or without gradients only those that become queries.
        encoder: predictions of the encoder's auxiliary heads (training only).
        denoising: predictions for noised objects (training with denoising only).
        scores: token scores, if there is a scorer.
        token_mass: see ``DecoderOutput``.
        objects: see ``EncoderOutput``.
        glance: the glance, if the detector has regions.
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
    glance: Glance | None = None

    @property
    def at_glance(self) -> DetectorOutput:
        """This output from the view of the glance's scorer, for the loss terms that train it.

        Features and scores are those of the glance. The number of kept tokens has the same share as
        the chosen tiles. The decoder's attention to a fine token is added to the cell of the glance
        that contains it.
        """
        glance = self.glance
        assert glance is not None
        shares = zip(glance.looked.max_counts, glance.tiles.num_valid, strict=True)
        counts = tuple(
            max(looked * valid // tiles, 1)
            for (looked, tiles), valid in zip(shares, glance.features.num_valid, strict=True)
        )
        mass = self.token_mass
        if mass is not None:
            there = mass.masked_fill(self.features.padding_mask, 0.0)
            fine = len(self.features.strides) - len(glance.features.strides)
            mass = self.features.fold(there, fine)
        return replace(
            self,
            features=glance.features,
            scores=glance.scores,
            selections=(TokenSelection(counts),),
            token_mass=mass,
        )

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """Kept / all tokens of each image, averaged over the encoder layers.

        May synchronize with the device, see ``TokenSelection.counts``.
        """
        counts = [selection.counts for selection in self.selections]
        return tuple(
            sum(layer[image] for layer in counts) / (len(counts) * total)
            for image, total in enumerate(self.features.all_tokens.counts)
        )


for _noun in (
    MultiScaleFeatures, Targets, Prediction, Matching, TokenScores, TokenSelection, PooledTokens,
    ObjectTokens, Glance,
    EncoderOutput, Queries, NoisedTargets, DenoisingOutput, DecoderOutput, DetectorOutput,
):  # fmt: skip
    torch.export.register_dataclass(_noun)

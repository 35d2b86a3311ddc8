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
        """The same objects, those made larger around their centers that are too small.

        Args:
            side: the least width and height, in pixels.
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
        logits: score of every token; what padding and absent ones hold is not
            defined, selectors mask it.
        prediction: set where the scorer is supervised as a detector.
        weighs: the kept tokens are to be weighted by their scores, which is how a scorer that no
            loss supervises gets a gradient.
    """

    logits: Float[Tensor, "B N"]
    prediction: Prediction | None = None
    weighs: bool = False


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
        selections: tokens that the encoder layers of a decoder which has some updated.
    """

    predictions: tuple[Prediction, ...]
    token_mass: Float[Tensor, "B N"] | None = None
    selections: tuple[TokenSelection, ...] = ()


@dataclass(frozen=True)
class Glance:
    """What one look at whole pictures said of where to look more closely.

    Attributes:
        features: the pictures as they were seen at a glance.
        scores: of these tokens; None where nothing scores them.
        tiles: the tiles of the pictures as a map of one level; the stride is their side, each token
            is one number, the score of the tile (logit).
        looked: the tiles that were looked at.
    """

    features: MultiScaleFeatures
    scores: TokenScores | None
    tiles: MultiScaleFeatures
    looked: TokenSelection


@dataclass(frozen=True)
class DetectorOutput:
    """Everything one pass of the detector produced.

    Attributes:
        decoder: predictions of the decoder layers; ``decoder[-1]`` is the answer.
        features: encoder input.
        memory: encoder output.
        selections: tokens that each encoder layer updated; if the encoder has none, those of the
            decoder's.
        proposals: first-stage prediction, where the query initializer makes one: of all tokens, or
            without gradients of those alone that become queries.
        encoder: predictions of the encoder's auxiliary heads (training only).
        denoising: predictions for noised objects (training only), where there is denoising.
        scores: token scores, where there is a scorer.
        token_mass: see ``DecoderOutput``.
        objects: see ``EncoderOutput``.
        glance: where the backbone looked, if it saw parts of the pictures.
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
        """The same pass as the scorer of the glance sees it, for the terms that train it.

        Features and scores are those of the glance. It is to keep the share of its tokens that was
        looked at of the tiles, and the attention that the decoder pays to a fine token is in the
        cell of the glance that the token lies in.
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
        """Kept / all tokens of each image, the mean over the encoder layers.

        It may wait for the device, see ``TokenSelection.counts``.
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

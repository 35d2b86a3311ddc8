"""The one detector: every method of this package is a configuration of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparsedet.events import log_scalar
from sparsedet.layers.positional import SinePositionEmbedding
from sparsedet.modeling.features import by_tokens
from sparsedet.modeling.heads import Heads
from sparsedet.modeling.inputs import ImageDetector, make_instances, make_tiles
from sparsedet.modeling.parts import (
    Assembly,
    Criterion,
    Decoder,
    Denoising,
    Encoder,
    Neck,
    QueryInitializer,
    Regions,
    Scorer,
    Selector,
)
from sparsedet.modeling.selection import DenseSelector
from sparsedet.modeling.stages import (
    DecoderOutput,
    DenoisingOutput,
    DetectorOutput,
    Glance,
    MultiScaleFeatures,
    PartialMap,
    Prediction,
    Queries,
    Size,
    Targets,
    TokenScores,
    flatten_maps,
    level_size,
)
from sparsedet.modeling.tokens import gather_rows
from sparsedet.structures import cxcywh_to_xyxy


class TokenSparseDetector(ImageDetector):
    """Backbone, neck, token scorer, selector, encoder, query initializer, decoder.

    All methods in ``projects/`` except torchvision's detectors are this class with different parts.

    Args:
        backbone: images to named maps.
        neck: named maps to one map per level; has ``strides``.
        encoder: updates the selected tokens.
        query_initializer: makes the decoder's queries from the encoded map.
        decoder: makes the predictions.
        criterion: the training objective.
        embed_dim: channels of all parts.
        num_levels: feature levels of all parts.
        num_classes: classes.
        scorer: scores the tokens for the selector; None for a dense encoder.
        selector: chooses the tokens; None = all of them.
        denoising: adds queries that start from noised objects in training; None = no such queries.
        regions: decides which parts of the images the backbone sees; None = whole images. They may
            change the number of levels: ``num_levels`` is the number after them, and the neck has
            its own.
        position_embedding: embedding of the cells; None = ``SinePositionEmbedding(embed_dim)``.
        level_embed: add a learned embedding of the level to the positions of its cells.
        shared_heads: one head for all decoder layers (Deformable DETR without refinement).
        encoder_aux_loss: supervise every encoder layer but the last with its own head (Sparse DETR,
            section 3.4).
        unmasked_border: see ``Heads``; published weights need it.
        pixel_mean: mean of the RGB channels, images being in 0..255.
        pixel_std: their standard deviation.
        max_detections: detections per image, the best of all queries and classes.

    Raises:
        ValueError: if the parts do not fit together; the message says what to change.
    """

    neck: Neck
    scorer: Scorer | None
    selector: Selector
    encoder: Encoder
    query_initializer: QueryInitializer
    decoder: Decoder
    denoising: Denoising | None
    regions: Regions | None

    def __init__(
        self,
        backbone: nn.Module,
        neck: Neck,
        *,
        encoder: Encoder,
        query_initializer: QueryInitializer,
        decoder: Decoder,
        criterion: Criterion,
        embed_dim: int,
        num_levels: int,
        num_classes: int,
        scorer: Scorer | None = None,
        selector: Selector | None = None,
        denoising: Denoising | None = None,
        regions: Regions | None = None,
        position_embedding: SinePositionEmbedding | None = None,
        level_embed: bool = True,
        shared_heads: bool = False,
        encoder_aux_loss: bool = False,
        unmasked_border: bool = False,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        max_detections: int = 100,
    ) -> None:
        super().__init__(num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone, self.neck, self.regions = backbone, neck, regions
        self.scorer, self.selector = scorer, selector or DenseSelector()
        self.encoder, self.query_initializer, self.decoder = encoder, query_initializer, decoder
        self.denoising, self.criterion = denoising, criterion
        self.max_detections = max_detections
        self.position_embedding = position_embedding or SinePositionEmbedding(embed_dim)
        parts = Assembly(
            embed_dim=embed_dim,
            num_levels=num_levels,
            num_classes=num_classes,
            backbone=backbone,
            neck=neck,
            encoder=encoder,
            query_initializer=query_initializer,
            decoder=decoder,
            selector=self.selector,
            scorer=scorer,
            denoising=denoising,
            position_embedding=self.position_embedding,
            criterion=criterion,
            regions=regions,
        )
        parts.check()
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim)) if level_embed else None
        self.heads = _make_heads(
            parts,
            shared=shared_heads,
            encoder_aux=encoder_aux_loss,
            unmasked_border=unmasked_border,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.heads.decoder(0).class_embed.weight.dtype

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Train or predict.

        Args:
            batched_inputs: samples in detectron2's format: ``image`` (3, h, w) in 0..255 RGB, and
                for training ``instances`` with ``gt_boxes`` and ``gt_classes``; ``height`` and
                ``width`` are the size to which detections are scaled (default: the size of the
                image).

        Returns:
            Training: a dict of weighted losses whose sum is the objective. Evaluation: for each
            sample ``{"instances": Instances, "keep_ratio": kept / valid tokens, the mean over the
            encoder layers}``, and with regions ``"tiles"``, see ``make_tiles``.

        Raises:
            ValueError: for pictures that are not (3, h, w) in 0..255, samples without instances in
                training, or labels out of range.
        """
        batch = self.preprocess(batched_inputs)
        if not self.training:
            output = self.detect(batch.images, batch.image_sizes, batch.targets)
            return self.postprocess(output, batched_inputs)
        targets = self.require_targets(batch)
        output = self.detect(
            batch.images, batch.image_sizes, targets, record=self.criterion.requires
        )
        log_scalar("keep_ratio", sum(output.keep_ratios) / len(output.keep_ratios))
        return self.criterion(output, targets)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each level that the encoder sees."""
        own = self.neck.strides
        return tuple(own) if self.regions is None else self.regions.strides(own)

    def embed(
        self,
        maps: Sequence[Tensor | PartialMap],
        image_sizes: Sequence[Size],
    ) -> MultiScaleFeatures:
        """Flatten maps and add their position and level embeddings.

        Args:
            maps: one map per level, fine to coarse. If there are fewer maps than levels, they are
                the coarsest levels.
            image_sizes: (h, w) of each unpadded image.
        """
        strides = self.strides[-len(maps) :]
        return flatten_maps(maps, self._positions, strides=strides, image_sizes=image_sizes)

    def _positions(
        self,
        valid_sizes: Float[Tensor, "B L 2"],
        spatial_shapes: Sequence[Size],
        cells: Sequence[Tensor | None] = (),
    ) -> Float[Tensor, "B N C"]:
        embedding, chosen = cast(Callable[..., Sequence[Tensor]], self.position_embedding), {}
        if any(each is not None for each in cells):
            if not getattr(embedding, "takes_cells", False):
                return by_tokens(
                    self._positions(valid_sizes, spatial_shapes), cells, spatial_shapes
                )
            chosen = {"cells": cells}
        levels = embedding(valid_sizes, spatial_shapes, **chosen)
        if self.level_embed is None:
            return torch.cat(list(levels), dim=1)
        own = self.level_embed[-len(levels) :]
        return torch.cat([x + each for x, each in zip(levels, own, strict=True)], dim=1)

    def detect(
        self,
        images: Float[Tensor, "B 3 H W"],
        image_sizes: Sequence[Size],
        targets: Targets | None = None,
        *,
        record: Collection[str] = (),
    ) -> DetectorOutput:
        """Tensors in, ``DetectorOutput`` out.

        For half precision, use autocast, or for inference convert the weights:
        ``model.to(torch.bfloat16)``. In both cases, scores, references and boxes are computed in
        fp32.

        Args:
            images: normalized and zero-padded; they are converted to the dtype of the weights.
            image_sizes: (h, w) of each unpadded image, as Python integers; a single entry if all
                images have this size.
            targets: for training, and for scorers that use them.
            record: what to record for the criterion, see ``SetCriterion.requires``.
        """
        features, glance = self.see(images, image_sizes, targets)
        output = self.detect_features(features, targets, images=images, record=record)
        return output if glance is None else replace(output, glance=glance)

    def see(
        self,
        images: Float[Tensor, "B 3 H W"],
        image_sizes: Sequence[Size],
        targets: Targets | None = None,
    ) -> tuple[MultiScaleFeatures, Glance | None]:
        """Run backbone and neck; return the embedded features, and the glance of the regions.

        Args:
            images: see ``detect``.
            image_sizes: see ``detect``.
            targets: for regions, which use them in training.

        Raises:
            ValueError: sizes that exceed the images, or maps whose strides are not those of the
                neck.
        """
        h, w = images.shape[-2:]
        if any(height > h or width > w for height, width in image_sizes):
            raise ValueError(
                f"TokenSparseDetector.detect: image_sizes must fit into images of {h} x {w}, got "
                f"{list(image_sizes)}."
            )
        if self.regions is None:
            maps = self._maps(images, len(self.neck.strides))
            return self.embed(maps, image_sizes), None
        return self.regions(images, image_sizes, targets=targets, **self._seeing())

    def glance(
        self,
        images: Float[Tensor, "B 3 H W"],
        image_sizes: Sequence[Size],
        targets: Targets | None = None,
    ) -> Glance:
        """Where the regions of the detector would look; runs only the glance.

        Args:
            images: see ``detect``.
            image_sizes: see ``detect``.
            targets: see ``see``.

        Raises:
            ValueError: the detector has no regions.
        """
        if self.regions is None:
            raise ValueError(
                "TokenSparseDetector.glance needs regions, got None. Set model.regions."
            )
        return self.regions.glance(images, image_sizes, targets=targets, **self._seeing())[1]

    def _seeing(self) -> dict[str, Any]:
        """What regions see with."""
        return {
            "see": self._maps_of_any_size,
            "embed": self.embed,
            "strides": self.neck.strides,
            "heads": self.heads,
        }

    def _maps_of_any_size(self, images: Float[Tensor, "b 3 h w"], num_levels: int) -> list[Tensor]:
        """The neck's finest maps, from images that are padded as the backbone needs it."""
        divisor = self.size_divisibility
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % divisor, 0, -height % divisor))
        strides = self.neck.strides[:num_levels]
        sizes = [level_size((height, width), stride) for stride in strides]
        maps = self._maps(padded, num_levels)
        return [x[..., :rows, :columns] for x, (rows, columns) in zip(maps, sizes, strict=True)]

    def _maps(self, images: Float[Tensor, "b 3 h w"], num_levels: int) -> Sequence[Tensor]:
        """The neck's finest maps; coarser ones are skipped if backbone and neck can stop early."""
        neck, strides = cast(Callable[..., Sequence[Tensor]], self.neck), self.neck.strides
        backbone = cast(Callable[..., Mapping[str, Tensor]], self.backbone)
        finest, until = {}, {}
        if num_levels < len(strides) and getattr(neck, "takes_num_levels", False):
            finest = {"num_levels": num_levels}
            if getattr(backbone, "takes_coarsest", False):
                until = {"coarsest": cast(Any, neck).coarsest_map(num_levels)}
        maps = neck(backbone(images.to(self.dtype), **until), **finest)[:num_levels]
        h, w = images.shape[-2:]
        expected = [level_size((h, w), stride) for stride in strides[:num_levels]]
        got = [(x.shape[-2], x.shape[-1]) for x in maps]
        if got != expected:
            raise ValueError(
                f"TokenSparseDetector.neck: strides {list(strides)} imply maps of "
                f"{expected} for images of {h} x {w}, got {got}. Set model.neck.strides."
            )
        return maps

    def detect_features(
        self,
        features: MultiScaleFeatures,
        targets: Targets | None = None,
        *,
        images: Float[Tensor, "B 3 H W"] | None = None,
        record: Collection[str] = (),
    ) -> DetectorOutput:
        """``detect`` after the embedding; the images are for scorers that need them."""
        scores = self.score(features, targets, images)
        selections = self.selector(scores, features, self.encoder.num_layers)
        encoded = self.encoder(features, selections, scores, self.heads, aux=self.training)
        queries, proposals = self.query_initializer(encoded.memory, self.heads)
        decoded, denoised = self._decode(queries, encoded.memory, targets, record)
        return DetectorOutput(
            decoder=decoded.predictions,
            features=features,
            memory=encoded.memory,
            selections=selections or decoded.selections,
            proposals=proposals,
            encoder=encoded.aux,
            denoising=denoised,
            scores=scores,
            token_mass=decoded.token_mass,
            objects=encoded.objects,
        )

    def score(
        self,
        features: MultiScaleFeatures,
        targets: Targets | None = None,
        images: Float[Tensor, "B 3 H W"] | None = None,
    ) -> TokenScores | None:
        """The scores of the tokens; None without a scorer."""
        if self.scorer is None:
            return None
        if getattr(self.scorer, "needs_images", False):
            score = cast(Callable[..., TokenScores], self.scorer)
            return score(features, self.heads, targets, images=images)
        return self.scorer(features, self.heads, targets)

    def _decode(
        self,
        queries: Queries,
        memory: MultiScaleFeatures,
        targets: Targets | None,
        record: Collection[str],
    ) -> tuple[DecoderOutput, DenoisingOutput | None]:
        if not self.training or self.denoising is None or targets is None:
            return self.decoder(queries, memory, self.heads, record=record), None
        noised = self.denoising.sample(targets)
        queries = self.denoising.prepend(queries, noised)
        decoded = self.decoder(queries, memory, self.heads, record=record)
        predictions, denoised = self.denoising.split(decoded.predictions, noised, targets)
        return replace(decoded, predictions=predictions), denoised

    def postprocess(
        self, output: DetectorOutput, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The best ``max_detections`` over queries and classes, in pixels of the original image."""
        scores, labels, boxes = top_detections(output.decoder[-1], self.max_detections)
        results, keep_ratios = [], output.keep_ratios
        for index, sample in enumerate(batched_inputs):
            kept = scores[index] >= 0  # fillers have the score -1
            instances = make_instances(
                sample,
                output.features.image_sizes[index],
                cxcywh_to_xyxy(boxes[index][kept]),
                scores[index][kept],
                labels[index][kept],
            )
            results.append({"instances": instances, "keep_ratio": keep_ratios[index]})
            if output.glance is not None:
                results[-1]["tiles"] = make_tiles(output.glance, index, instances.image_size)
        return results


def _make_heads(
    parts: Assembly, *, shared: bool, encoder_aux: bool, unmasked_border: bool
) -> Heads:
    """The heads that the parts need."""
    decoder, queries = parts.decoder, parts.query_initializer
    from_points = 0
    if queries.reference_dim == 2:
        from_points = 1 if decoder.refine else decoder.num_layers
    layers = range(1 if shared else decoder.num_layers)
    scorers = [each for each in (parts.scorer, parts.at_glance.scorer) if each is not None]
    return Heads(
        parts.embed_dim,
        parts.num_classes,
        size_biases=[-2.0 if layer < from_points else 0.0 for layer in layers],
        proposal=queries.needs_proposals,
        num_encoder=parts.encoder.num_layers - 1 if encoder_aux else 0,
        scorer=any(each.needs_head for each in scorers),
        token_embedding=queries.needs_proposals
        or any(each.needs_token_embedding for each in scorers),
        unmasked_border=unmasked_border,
        softmax=getattr(parts.criterion, "softmax", False),
    )


def top_detections(prediction: Prediction, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best ``count`` of all queries and classes: scores, labels ``[B n]``, boxes ``[B n 4]``.

    See ``top_queries``.
    """
    scores, labels, queries = top_queries(prediction, count)
    return scores, labels, gather_rows(prediction.boxes.float(), queries)


def top_queries(prediction: Prediction, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best ``count`` of all queries and classes: scores, labels and queries, ``[B n]`` each.

    With a softmax, each query contributes only its best class. Fillers have the score -1.
    """
    scores = prediction.scores
    if prediction.valid is not None:
        scores = scores.masked_fill(~prediction.valid[..., None], -1.0)
    if prediction.softmax:
        top, labels = scores.max(-1)
        best = top.topk(min(count, top.shape[1]), dim=1)
        return best.values, labels.gather(1, best.indices), best.indices
    num_classes = scores.shape[-1]
    best = scores.flatten(1).topk(min(count, scores.shape[1] * num_classes), dim=1)
    return best.values, best.indices % num_classes, best.indices // num_classes

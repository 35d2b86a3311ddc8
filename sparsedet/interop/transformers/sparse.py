"""Deformable DETR of transformers with a token-sparse encoder (Sparse DETR, section 3)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrEncoder,
    DeformableDetrEncoderLayer,
    DeformableDetrObjectDetectionOutput,
)
from transformers.utils.generic import can_return_tuple

from sparsedet.config.naming import locate
from sparsedet.interop.transformers.kernel import use_sparsedet_kernel
from sparsedet.modeling import (
    DecoderAttentionLoss,
    ForegroundLoss,
    Heads,
    MultiScaleFeatures,
    Targets,
    TokenScores,
    TokenSelection,
    TopKSelector,
    attention_mass,
)
from sparsedet.modeling.parts import DecoderAttention, Foreground, Scorer
from sparsedet.registry import SCORERS

__all__ = [
    "SparseDeformableDetrConfig",
    "SparseDeformableDetrForObjectDetection",
    "SparseDeformableDetrModel",
    "sparsify",
]


class SparseDeformableDetrConfig(DeformableDetrConfig):
    """Configuration of a Deformable DETR with a sparse encoder; the rest is as in the dense one.

    Attributes:
        scorer: class that scores the tokens: a name of ``sparsedet components`` or a dotted path.
        keep_ratio: share of the tokens that every encoder layer updates, in (0, 1].
        scorer_loss_coefficient: weight of the scorer's loss in the total loss.
    """

    model_type = "sparse_deformable_detr"

    scorer: str = "DAMPredictor"
    keep_ratio: float = 0.3
    scorer_loss_coefficient: float = 1.0


@dataclass
class SparseEncoderOutput(BaseModelOutput):
    """Encoded tokens, and the inputs of the scorer's loss."""

    features: MultiScaleFeatures | None = None
    scores: TokenScores | None = None
    selections: tuple[TokenSelection, ...] | None = None


class SparseDeformableDetrEncoderLayer(DeformableDetrEncoderLayer):
    """Encoder layer that updates the selected tokens of the map; weights as in the dense one."""

    index: int

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        spatial_position_embeddings: Tensor,
        reference_points: Tensor,
        *,
        selections: tuple[TokenSelection, ...],
        **kwargs: Any,
    ) -> Tensor:
        """Update the tokens that the layer's own entry of ``selections`` keeps.

        Args:
            hidden_states: (B, N, C), the map; the kept tokens read from all of it.
            attention_mask: (B, N), False = padding.
            spatial_position_embeddings: (B, N, C).
            reference_points: (B, N, L, 2).
            selections: kept tokens of every layer.
            kwargs: sizes of the levels for the attention.

        Returns:
            (B, N, C): the map with the kept tokens updated.
        """
        kept = selections[self.index]
        rows = kept.gather(hidden_states)
        attended, _ = self.self_attn(
            hidden_states=rows,
            attention_mask=attention_mask,
            encoder_hidden_states=hidden_states,
            position_embeddings=kept.gather(spatial_position_embeddings),
            reference_points=kept.gather(reference_points),
            **kwargs,
        )
        attended = nn.functional.dropout(attended, self.dropout, self.training)
        rows = self.self_attn_layer_norm(rows + attended)
        rows = self.final_layer_norm(rows + self.mlp(rows))
        return kept.scatter(hidden_states, rows)


class SparseDeformableDetrEncoder(DeformableDetrEncoder):
    """Encoder with a scorer and a selector before its layers."""

    scorer: Scorer

    def __init__(self, config: SparseDeformableDetrConfig) -> None:
        super().__init__(config)
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            layer.__class__ = SparseDeformableDetrEncoderLayer
            layer.index = index
        self.scorer, self.heads = _make_scorer(config)
        self.selector = TopKSelector(config.keep_ratio)

    def _init_weights(self, module: nn.Module) -> None:
        """As in transformers, except that the scorer has this library's initialization."""
        super()._init_weights(module)
        config: Any = self.config
        for index, part in enumerate(("scorer", "heads")):
            own = self._modules.get(part)  # none yet while the base class is made
            for name, each in own.named_modules() if own is not None else ():
                if each is module:
                    fresh = _make_scorer(config)[index].get_submodule(name)
                    for key, start in fresh.named_parameters(recurse=False):
                        init.copy_(module.get_parameter(key), start)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        spatial_position_embeddings: Tensor,
        spatial_shapes_list: list[tuple[int, int]],
        **kwargs: Any,
    ) -> SparseEncoderOutput:
        """Encode.

        Args:
            inputs_embeds: (B, N, C), the tokens.
            attention_mask: (B, N), False = padding.
            spatial_position_embeddings: (B, N, C).
            spatial_shapes_list: (height, width) of each level.
            kwargs: other arguments of the dense encoder.

        Raises:
            ValueError: If the scorer weights the kept tokens.
        """
        features = MultiScaleFeatures.from_tokens(
            inputs_embeds, spatial_position_embeddings, spatial_shapes_list, ~attention_mask.bool()
        )
        scores = self.scorer(features, self.heads)
        if scores.weighs:
            raise ValueError(
                f"SparseDeformableDetrConfig.scorer must be trained by a loss, got "
                f"{self.config.scorer!r}, which weights the tokens instead. Use DAMPredictor."
            )
        selections = self.selector(scores, features, len(self.layers))
        encoded = super().forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            spatial_position_embeddings=spatial_position_embeddings,
            spatial_shapes_list=spatial_shapes_list,
            selections=selections,
            **kwargs,
        )
        return SparseEncoderOutput(
            **encoded, features=features, scores=scores, selections=selections
        )


class SparseDeformableDetrModel(DeformableDetrModel):
    """``DeformableDetrModel`` with a sparse encoder; its keys, plus the keys of the scorer."""

    config_class = SparseDeformableDetrConfig

    def __init__(self, config: SparseDeformableDetrConfig) -> None:
        super().__init__(config)
        self.encoder = SparseDeformableDetrEncoder(config)
        use_sparsedet_kernel(self)


@dataclass
class _Seen:
    """The values of a pass that the scorer's loss needs."""

    encoded: SparseEncoderOutput | None = None
    masses: list[Tensor] = field(default_factory=list)


class SparseDeformableDetrForObjectDetection(DeformableDetrForObjectDetection):
    """``DeformableDetrForObjectDetection`` with a sparse encoder.

    It has the same keys, plus the keys of the scorer. With ``labels`` the scorer's loss is part of
    ``loss``, and is ``loss_scorer`` in ``loss_dict``.
    """

    config_class = SparseDeformableDetrConfig

    def __init__(self, config: SparseDeformableDetrConfig) -> None:
        super().__init__(config)
        self.model.encoder = SparseDeformableDetrEncoder(config)
        self.loss_type = "DeformableDetrForObjectDetection"
        use_sparsedet_kernel(self)

    @can_return_tuple
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        **kwargs: Any,
    ) -> DeformableDetrObjectDetectionOutput:
        """Detect, and with ``labels`` compute the loss.

        Args:
            pixel_values: (B, 3, H, W).
            pixel_mask: (B, H, W), 1 = valid.
            labels: ``class_labels`` and ``boxes`` of each image.
            kwargs: other arguments of the dense model.
        """
        inputs: dict[str, Any] = dict(
            pixel_values=pixel_values, pixel_mask=pixel_mask, labels=labels, **kwargs
        )
        output: Any
        if labels is None:
            output = super().forward(**inputs, return_dict=True)
            return output
        if kwargs.get("encoder_outputs") is not None:
            raise ValueError(
                f"{type(self).__name__}.labels cannot be combined with encoder_outputs: the "
                "scorer's loss needs the scores. Leave encoder_outputs out in training."
            )
        with self._watched() as seen:
            output = super().forward(**inputs, return_dict=True)
        loss = self._scorer_loss(seen, labels)
        if loss is not None:
            output.loss = output.loss + self.config.scorer_loss_coefficient * loss
            output.loss_dict["loss_scorer"] = loss
        return output

    def _scorer_loss(self, seen: _Seen, labels: list[dict[str, Tensor]]) -> Tensor | None:
        encoder: Any = self.model.encoder
        encoded, learns = seen.encoded, encoder.scorer.learns
        assert encoded is not None
        assert encoded.scores and encoded.features and encoded.selections
        if learns is DecoderAttention:
            mass = torch.stack(seen.masses).sum(0)
            return DecoderAttentionLoss(weight=1.0).of_scores(
                encoded.scores, encoded.features, encoded.selections[0], mass
            )
        if learns is Foreground:
            boxes = tuple(each["boxes"] for each in labels)
            classes = tuple(each["class_labels"] for each in labels)
            return ForegroundLoss(weight=1.0).of_scores(
                encoded.scores, encoded.features, Targets(boxes, classes)
            )
        return None

    @contextmanager
    def _watched(self) -> Iterator[_Seen]:
        """Record the encoder's output and the decoder's attention inside the context."""
        seen = _Seen()

        def note(module: nn.Module, args: Any, output: SparseEncoderOutput) -> None:
            seen.encoded = output

        def add_mass(module: nn.Module, args: tuple[Any, ...]) -> None:
            locations, weights = args[4:6]
            assert seen.encoded is not None and seen.encoded.features is not None
            seen.masses.append(attention_mass(seen.encoded.features, locations, weights))

        encoder: Any = self.model.encoder
        layers: Any = self.model.decoder.layers
        hooks = [encoder.register_forward_hook(note)]
        if encoder.scorer.learns is DecoderAttention:
            hooks += [
                layer.encoder_attn.attn.register_forward_pre_hook(add_mass) for layer in layers
            ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


def sparsify(
    model: DeformableDetrModel | DeformableDetrForObjectDetection,
    scorer: str = "DAMPredictor",
    *,
    keep_ratio: float = 0.3,
) -> SparseDeformableDetrModel | SparseDeformableDetrForObjectDetection:
    """Make a model with a sparse encoder from a Deformable DETR of transformers and its weights.

    Every encoder layer updates only the tokens with the highest scores, which read from all tokens.
    The scorer starts untrained. Train the result as you trained the model, for instance with
    ``Trainer``; the scorer's loss is included. The attention uses this library's op.

    ``save_pretrained`` and ``from_pretrained`` of the result's class work, and so do ``AutoModel``
    and ``AutoModelForObjectDetection`` once this module is imported. The keys of the dense model
    do not change: its plain class reads a saved folder as a dense model and reports the keys of the
    scorer as unexpected.

    Args:
        model: the dense model, which is not changed.
        scorer: class that scores the tokens: a name of ``sparsedet components``, or the dotted path
            of your own.
        keep_ratio: share of the tokens that every encoder layer updates, in (0, 1].

    Returns:
        A model of the sparse class with copies of the weights, on the same device, in the same
        dtype and mode.

    Raises:
        TypeError: If the model is of another class.
        ValueError: If the scorer or the ratio does not fit.
    """
    kinds: dict[type, Any] = {
        DeformableDetrModel: SparseDeformableDetrModel,
        DeformableDetrForObjectDetection: SparseDeformableDetrForObjectDetection,
    }
    if type(model) not in kinds:
        raise TypeError(
            "sparsify.model must be a DeformableDetrModel or a DeformableDetrForObjectDetection of "
            f"transformers, got {type(model).__name__}. Other models have no sparse encoder here."
        )
    options = model.config.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        options.pop(key, None)
    config = SparseDeformableDetrConfig(**options, scorer=scorer, keep_ratio=keep_ratio)
    sparse = kinds[type(model)](config)
    missing, unexpected = sparse.load_state_dict(model.state_dict(), strict=False)
    odd = [key for key in missing if not key.startswith(_own_keys(sparse))] + unexpected
    if odd:
        raise ValueError(
            "sparsify.model must have exactly the weights of its class, but these keys differ: "
            f"{odd}. Sparsify the model before you change it."
        )
    for name, parameter in model.named_parameters():
        sparse.get_parameter(name).requires_grad_(parameter.requires_grad)
    return sparse.to(device=model.device, dtype=model.dtype).train(model.training)


def _own_keys(sparse: nn.Module) -> tuple[str, ...]:
    prefix = "model." if isinstance(sparse, DeformableDetrForObjectDetection) else ""
    return tuple(f"{prefix}encoder.{part}." for part in ("scorer", "heads"))


def _make_scorer(config: SparseDeformableDetrConfig) -> tuple[Any, Heads]:
    """Build the scorer that the configuration names, with the token embedding that it needs.

    Raises:
        ValueError: If there is no scorer of that name, or it cannot be used in transformers.
    """
    where = "SparseDeformableDetrConfig.scorer"
    named = isinstance(config.scorer, str)
    if named and config.scorer in SCORERS:
        kind = SCORERS.get(config.scorer)
    elif named and "." in config.scorer:
        kind = locate(config.scorer)
    else:
        names = ", ".join(sorted(name for name, _ in SCORERS))
        raise ValueError(f"{where} must be one of {names} or a dotted path, got {config.scorer!r}.")
    sizes = {"embed_dim": config.d_model, "num_levels": config.num_feature_levels}
    takes = inspect.signature(kind).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needs = [
        name
        for name, each in takes.items()
        if each.default is each.empty and each.kind not in variadic
    ]
    scorer = None
    if isinstance(kind, type) and set(needs) <= set(sizes):
        scorer = kind(**{name: size for name, size in sizes.items() if name in takes})
    if not isinstance(scorer, Scorer):
        raise ValueError(
            f"{where} must name a scorer class that is built from embed_dim and num_levels, got "
            f"{config.scorer!r}. Use DAMPredictor."
        )
    if scorer.needs_head or scorer.learns not in (DecoderAttention, Foreground, None):
        raise ValueError(
            f"{where} must need no detection head and learn from boxes or from the decoder's "
            f"attention, got {config.scorer!r}. Use DAMPredictor."
        )
    embeds = scorer.needs_token_embedding
    return scorer, Heads(config.d_model, 1, size_biases=(), token_embedding=embeds)


AutoConfig.register(SparseDeformableDetrConfig.model_type, SparseDeformableDetrConfig)
AutoModel.register(SparseDeformableDetrConfig, SparseDeformableDetrModel)
AutoModelForObjectDetection.register(
    SparseDeformableDetrConfig, SparseDeformableDetrForObjectDetection
)

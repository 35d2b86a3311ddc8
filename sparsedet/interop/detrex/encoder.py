"""Use the encoders of this library instead of detrex's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsedet.conversion import SOURCES, rename
from sparsedet.interop.detrex.attention import (
    HostAttention,  # pyright: ignore[reportAttributeAccessIssue]
    sampling,
)
from sparsedet.layers.precision import in_float32
from sparsedet.modeling import (
    DetectorOutput,
    MultiScaleFeatures,
    Targets,
    TokenEmbedding,
    TokenScores,
    TokenSelection,
    attention_mass,
)
from sparsedet.modeling.features import Size
from sparsedet.modeling.parts import Encoder, Scorer, Selector, UnmatchedTerm
from sparsedet.registry import LOSSES
from sparsedet.structures import xyxy_to_cxcywh


class _HostHeads:
    """Class heads of the host, with the interface that the encoders need.

    It is not a module: the host owns its heads, and its checkpoint stores them once.

    Args:
        class_embed: class head, or a list of them: one for each decoder layer and one for the
            first stage if there is one; None = the host has none under this name.
        num_layers: decoder layers.
    """

    def __init__(self, class_embed: nn.Module | None, num_layers: int) -> None:
        self._class_embed, self._num_layers = class_embed, num_layers

    def decoder(self, layer: int) -> _ClassHead:
        """Head of a decoder layer; -1 is the last one."""
        return self._head(layer % self._num_layers)

    @property
    def proposal(self) -> _ClassHead:
        """First-stage head."""
        return self._head(self._num_layers)

    def _head(self, index: int) -> _ClassHead:
        heads = self._class_embed
        if heads is not None and not isinstance(heads, nn.ModuleList):
            return _ClassHead(heads)
        if heads is None or index >= len(heads):
            raise ValueError(
                f"SparseEncoder.encoder: the class head {index} of the host must be in "
                f"model.class_embed, got {heads}. Use DeformableEncoder, which needs none."
            )
        return _ClassHead(heads[index])


@dataclass(frozen=True)
class _ClassHead:
    linear: nn.Module

    def logits(self, x: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q classes"]:
        return in_float32(self.linear, x)


@dataclass
class _Pass:
    """Facts of a batch, and values of one pass of the host for the losses."""

    image_sizes: tuple[Size, ...]
    targets: Targets | None
    features: MultiScaleFeatures | None = None
    scores: TokenScores | None = None
    selections: tuple[TokenSelection, ...] = ()
    token_mass: Tensor | None = None


class SparseEncoder(nn.Module):
    """An encoder of this library in place of detrex's: flattened tokens in, memory out.

    Set it as ``model.transformer.encoder`` and call ``connect(model)``. Weights of detrex's own
    deformable encoder load into it.

    Args:
        encoder: ``DeformableEncoder`` or ``DualAttentionEncoder``. The latter rates tokens with the
            class head of the host (``model.class_embed``).
        scorer: scores the tokens; None where the selector needs none.
        selector: chooses the tokens that a layer updates.
        losses: the loss terms that train the scorer, such as ``DecoderAttentionLoss`` or
            ``ForegroundLoss``. They are added to the host's losses as ``loss_<name>``, weighted.
        strides: stride of each level in pixels.

    Raises:
        ValueError: the parts do not fit together; the message says what to change.
    """

    def __init__(
        self,
        encoder: Encoder,
        scorer: Scorer | None = None,
        *,
        selector: Selector,
        losses: Sequence[UnmatchedTerm] = (),
        strides: Sequence[int] = (8, 16, 32, 64),
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_layers = encoder.embed_dim, encoder.num_layers
        self.encoder, self.scorer, self.selector = encoder, scorer, selector
        self.losses, self.strides = tuple(losses), tuple(strides)
        _check_parts(self)
        needs_embedding = scorer is not None and scorer.needs_token_embedding
        self.embedding = TokenEmbedding(self.embed_dim) if needs_embedding else None
        # hosts initialize all their parameters again: `connect` restores these values
        self._initial: dict[str, Tensor] | None = {
            name: value.detach().clone() for name, value in self.state_dict().items()
        }
        self._heads: _HostHeads | None = None
        self._pass: _Pass | None = None
        self.register_load_state_dict_pre_hook(_take_weights_of_the_host)

    def forward(
        self,
        query: Float[Tensor, "B N C"],
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        query_pos: Float[Tensor, "B N C"],
        spatial_shapes: Tensor | Sequence[Size],
        query_key_padding_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "B N C"]:
        """Encode.

        Args:
            query: tokens of all levels.
            key: not used.
            value: not used.
            query_pos: position plus level embedding of every token.
            query_key_padding_mask: (B, N), True = padding.
            spatial_shapes: (height, width) per level.
            kwargs: more arguments of detrex's encoders; not used.

        Raises:
            ValueError: the encoder is not connected with its host.
        """
        now = self._pass
        heads: Any = self._heads  # has only the interface that the encoders need
        if heads is None or now is None:
            raise ValueError(
                "SparseEncoder must be connected with the model that it is in, got no connection. "
                "Call sparsedet.interop.detrex.connect(model), and then the model."
            )
        features = MultiScaleFeatures.from_tokens(
            query,
            query_pos,
            spatial_shapes,
            query_key_padding_mask,
            strides=self.strides,
            # in evaluation the masks of the hosts mark everything as valid
            image_sizes=now.image_sizes if self.training else None,
        )
        scores = None if self.scorer is None else self.scorer(features, self.embedding, now.targets)
        selections = self.selector(scores, features, self.num_layers)
        now.features, now.scores, now.selections = features, scores, selections
        return self.encoder(features, selections, scores, heads).memory.tokens

    # --- the host, by hooks

    def _connect(self, model: nn.Module) -> None:
        if self._heads is not None:
            raise ValueError(
                "connect.model must have a SparseEncoder that is not connected yet, got one that "
                "is already. Call connect once, with the whole model."
            )
        transformer = next(module for module in model.modules() if self in module.children())
        decoder = getattr(transformer, "decoder", None) or nn.Identity()
        attentions = [module for module in decoder.modules() if isinstance(module, HostAttention)]
        self._heads = _HostHeads(getattr(model, "class_embed", None), len(attentions))
        if any("token_mass" in getattr(term, "requires", ()) for term in self.losses):
            if not attentions:
                raise ValueError(
                    "SparseEncoder.losses: the decoder's attention must be deformable attention of "
                    f"detrex, {type(model).__name__} has none. Choose losses that do not need it."
                )
            for attention in attentions:
                attention.register_forward_pre_hook(self._record_mass, with_kwargs=True)
        self._num_queries = getattr(model, "num_queries", None)
        if self._initial is not None:
            self.load_state_dict(self._initial)
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Called before the host: read sizes and targets from the samples."""
        samples = args[0] if args else None
        if not isinstance(samples, Sequence) or not all(
            isinstance(sample, Mapping) and "image" in sample for sample in samples
        ):
            raise ValueError(
                "connect.model must be the whole model, called with a list of samples, got a "
                f"{type(model).__name__} that is called with {type(samples).__name__}."
            )
        device = next(model.parameters()).device
        self._pass = _Pass(
            tuple((int(h), int(w)) for h, w in (sample["image"].shape[-2:] for sample in samples)),
            _targets(samples, device),
        )

    @torch.no_grad()
    def _record_mass(self, attention: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        """Called before a decoder layer attends: record the attention of its matching queries."""
        now = self._pass
        if now is None or now.features is None or not self.training:
            return  # e.g. the backward of activation checkpointing calls it once more
        given = signature(HostAttention.forward).bind(attention, *args, **kwargs).arguments
        query = given["query"]
        if (pos := given.get("query_pos")) is not None:
            query = query + pos
        query = query if attention.batch_first else query.transpose(0, 1)
        # noised objects come before the queries that are matched
        matching = slice(-(self._num_queries or query.shape[1]), None)
        query, points = query[:, matching], given["reference_points"][:, matching]
        locations, weights = sampling(attention, query, points, now.features.spatial_shapes)
        mass = attention_mass(now.features, locations, weights)
        now.token_mass = mass if now.token_mass is None else now.token_mass + mass

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Called after the host: add the scorer's losses to its losses."""
        now, self._pass = self._pass, None
        if not self.training or not self.losses:
            return None
        assert now is not None and now.features is not None and now.targets is not None
        found = DetectorOutput(
            (), now.features, now.features, now.selections, scores=now.scores,
            token_mass=now.token_mass,
        )  # fmt: skip
        own = {f"loss_{term.name}": term.weight * term(found, now.targets) for term in self.losses}
        return {**output, **own}


def connect(model: nn.Module) -> nn.Module:
    """Connect the ``SparseEncoder`` of a model of detrex with the rest of it.

    The scorer's losses are added to the dictionary that the model returns in training. The encoder
    gets access to the decoder's attention and the class heads. Its initialization, which detrex's
    transformers overwrite, is restored.

    Args:
        model: the whole model, called with a list of samples.

    Returns:
        The model, so that a config can say ``model = L(connect)(model=model)``.

    Raises:
        ValueError: there is no ``SparseEncoder``, or it does not fit the model.
    """
    encoders = [module for module in model.modules() if isinstance(module, SparseEncoder)]
    if not encoders:
        raise ValueError(
            f"connect.model must have a SparseEncoder, got a {type(model).__name__} without one. "
            "Set model.transformer.encoder."
        )
    for encoder in encoders:
        encoder._connect(model)
    return model


def _check_parts(owner: SparseEncoder) -> None:
    """Refuse parts that do not fit together, and a scorer that no loss trains."""
    scorer, selector, encoder = owner.scorer, owner.selector, owner.encoder
    if len(owner.strides) != encoder.num_levels:
        raise ValueError(
            f"SparseEncoder.strides must be one number for each of {encoder.num_levels} levels, "
            f"got {owner.strides}. Set strides, or num_levels of the encoder."
        )
    if selector.needs_scorer and scorer is None:
        raise ValueError(
            f"SparseEncoder.scorer must be a scorer for {type(selector).__name__}, got None. "
            "Set scorer, for instance DAMPredictor."
        )
    for name in ("embed_dim", "num_levels"):
        wanted, got = getattr(encoder, name), getattr(scorer, name, None)
        if got not in (None, wanted):
            raise ValueError(
                f"SparseEncoder.scorer: {name} must be {wanted} as in the encoder, got {got}. "
                f"Set {name} of the scorer."
            )
    if scorer is not None and scorer.needs_head:
        raise ValueError(
            f"SparseEncoder.scorer must be trained by losses on tokens, {type(scorer).__name__} is "
            "trained as a detector. Choose DAMPredictor or ForegroundScorer."
        )
    _check_teaching(scorer, owner.losses)


def _check_teaching(scorer: Scorer | None, losses: Sequence[UnmatchedTerm]) -> None:
    learns = getattr(scorer, "learns", None)
    given = [type(term).__name__ for term in losses]
    if learns is not None and not any(_teaches(term, learns) for term in losses):
        fitting = sorted(name for name, term in LOSSES if _teaches(term, learns))
        wanted = " or ".join(fitting) or f"a term whose teaches is {learns.__name__}"
        raise ValueError(
            f"SparseEncoder.losses: {type(scorer).__name__} is trained by {wanted}, got {given}. "
            "Without it the scorer has no gradient: add it to losses."
        )
    for term, name in zip(losses, given, strict=True):
        if getattr(term, "teaches", None) is not None and not _teaches(term, learns):
            there = "there is no scorer" if scorer is None else f"{type(scorer).__name__} does not"
            raise ValueError(
                f"SparseEncoder.losses: {name} must train a scorer that learns from it, and "
                f"{there}. Leave it out, or set another scorer."
            )


def _teaches(term: Any, learns: type | None) -> bool:
    kind = getattr(term, "teaches", None)
    return kind is not None and learns is not None and issubclass(kind, learns)


def _targets(samples: Sequence[Mapping[str, Any]], device: torch.device) -> Targets | None:
    """Boxes and labels of samples, if all have them; boxes relative to their image, in [0, 1]."""
    if not all("instances" in sample for sample in samples):
        return None
    boxes, labels = [], []
    for sample in samples:
        instances = sample["instances"]
        height, width = instances.image_size
        xyxy = instances.gt_boxes.tensor.float()
        cxcywh = xyxy_to_cxcywh(xyxy) / xyxy.new_tensor((width, height, width, height))
        boxes.append(cxcywh.to(device, non_blocking=True))
        labels.append(instances.gt_classes.long().to(device, non_blocking=True))
    return Targets(tuple(boxes), tuple(labels))


def _take_weights_of_the_host(
    encoder: SparseEncoder, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Rename keys of detrex's own encoder; loaded weights must not be initialized again."""
    encoder._initial = None
    for key in [key for key in state_dict if key.startswith(f"{prefix}layers.")]:
        theirs = "transformer.encoder." + key.removeprefix(prefix)
        if ours := rename(theirs, SOURCES["detrex"], 0, shared_heads=False):
            state_dict[prefix + ours] = state_dict.pop(key)

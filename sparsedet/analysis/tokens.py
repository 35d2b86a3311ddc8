"""Which tokens the encoder keeps, and what the decoder looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsedet.analysis.passes import evaluating
from sparsedet.modeling import TokenSparseDetector, TopKSelector
from sparsedet.modeling.stages import DetectorOutput, TokenScores

REFERRED = 0.99  # share of the attention mass that defines the referred tokens


@dataclass(frozen=True)
class TokenStatistics:
    """What the encoder keeps and where the decoder looks; every image has the same weight.

    Attributes:
        num_images: number of images.
        tokens: tokens by level without padding and absent tokens; mean over the images.
        kept: tokens that an encoder layer updates, by layer and level; mean over the images.
        keep_ratio: kept / all tokens; mean over layers and images.
        pooled: pooled tokens, which represent the tokens that are not kept; mean over the images.
            None if the encoder does not pool.
        share: the share of ``corr``.
        corr: share of the decoder's cross-attention mass that falls on this ``share`` of the tokens
            with the best scores (Focus-DETR, table 3); None without a scorer.
        corr_kept: share of the mass on the tokens that any encoder layer updates.
        mass: share of the mass on each level.
        referred: share of each level's tokens that the decoder refers to, see ``referred_tokens``.
        referred_ratio: the same for all tokens.
    """

    num_images: int
    tokens: tuple[float, ...]
    kept: tuple[tuple[float, ...], ...]
    keep_ratio: float
    pooled: float | None
    share: float
    corr: float | None
    corr_kept: float
    mass: tuple[float, ...]
    referred: tuple[float, ...]
    referred_ratio: float


def kept_tokens(output: DetectorOutput) -> Bool[Tensor, "B N"]:
    """True at the tokens that any encoder layer updates."""
    return torch.stack(_layer_masks(output)).any(0)


def kept_by_level(output: DetectorOutput) -> Int[Tensor, "B layers L"]:
    """Tokens that each encoder layer updates on each level."""
    masks = torch.stack(_layer_masks(output), dim=1)
    levels = masks.split(output.features.level_lengths, dim=-1)
    return torch.stack([level.sum(-1) for level in levels], dim=-1)


def _layer_masks(output: DetectorOutput) -> list[Bool[Tensor, "B N"]]:
    features = output.features
    return [
        ~features.padding_mask if selection.indices is None else selection.mask(features.num_tokens)
        for selection in output.selections
    ]


def best_tokens(output: DetectorOutput, share: float) -> Bool[Tensor, "B N"]:
    """True at this share of each image's tokens with the best scores, rounded as in a selector.

    Raises:
        ValueError: if the model has no scorer, or for a share outside of (0, 1].
    """
    if output.scores is None:
        raise ValueError("best_tokens needs token scores, got None. Set model.scorer.")
    scores = TokenScores(output.scores.logits)
    return TopKSelector(share)(scores, output.features, 1)[0].mask(output.features.num_tokens)


def attention_share(output: DetectorOutput, tokens: Bool[Tensor, "B N"]) -> Float[Tensor, "B"]:
    """Share of each image's decoder cross-attention mass that falls on some of its tokens.

    The mass is summed over matching queries, layers and heads, without padding.

    Args:
        output: of ``model.detect(..., record={"token_mass"})``.
        tokens: True at the tokens.

    Raises:
        ValueError: if the mass was not recorded.
    """
    mass = _mass(output, "attention_share")
    return (mass * tokens).sum(1) / mass.sum(1).clamp(min=torch.finfo(mass.dtype).tiny)


def referred_tokens(output: DetectorOutput, share: float = REFERRED) -> Bool[Tensor, "B N"]:
    """True at the tokens that the decoder refers to (Sparse DETR, section 1).

    They are the smallest set of an image's tokens that holds this share of its decoder
    cross-attention mass, as in ``attention_share``.

    Args:
        output: of ``model.detect(..., record={"token_mass"})``.
        share: the share of the mass.

    Raises:
        ValueError: if the mass was not recorded, or for a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"referred_tokens.share must be in (0, 1], got {share}.")
    falling, order = _mass(output, "referred_tokens").double().sort(descending=True)
    held = falling.cumsum(1)
    referred = (held - falling < share * held[:, -1:]) & (falling > 0)
    return torch.zeros_like(referred).scatter(1, order, referred)


def _mass(output: DetectorOutput, function: str) -> Float[Tensor, "B N"]:
    if output.token_mass is None:
        raise ValueError(
            f"{function}.output must hold the token mass, got None. Call "
            "model.detect(..., record={'token_mass'})."
        )
    return output.token_mass.masked_fill(output.features.padding_mask, 0.0)


@dataclass
class _Sums:
    """Sums over images."""

    images: int = 0
    tokens: Any = 0.0
    kept: Any = 0.0
    keep_ratio: float = 0.0
    pooled: float | None = None
    corr: float = 0.0
    corr_kept: float = 0.0
    mass: Any = 0.0
    referred: Any = 0.0
    referred_ratio: float = 0.0
    has_scores: bool = True


def token_statistics(
    model: TokenSparseDetector,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    *,
    share: float = 0.1,
) -> TokenStatistics:
    """Run the model over batches of samples and look at its tokens.

    Args:
        model: in any mode; it runs in eval mode.
        batches: lists of samples as ``model.forward`` takes them, for instance from a test loader.
        share: share of the tokens with the best scores, for ``corr``; the paper uses a tenth.

    Raises:
        ValueError: if there are no images, or for a share outside (0, 1].
    """
    sums = _Sums()
    with evaluating(model), torch.inference_mode():
        for samples in batches:
            batch = model.preprocess(samples)
            output = model.detect(
                batch.images, batch.image_sizes, batch.targets, record={"token_mass"}
            )
            _add(sums, output, share)
    if not sums.images:
        raise ValueError("token_statistics.batches must hold at least one image, got none.")
    images = sums.images
    return TokenStatistics(
        num_images=images,
        tokens=tuple((sums.tokens / images).tolist()),
        kept=tuple(tuple(layer) for layer in (sums.kept / images).tolist()),
        keep_ratio=sums.keep_ratio / images,
        pooled=None if sums.pooled is None else sums.pooled / images,
        share=share,
        corr=sums.corr / images if sums.has_scores else None,
        corr_kept=sums.corr_kept / images,
        mass=tuple((sums.mass / images).tolist()),
        referred=tuple((sums.referred / images).tolist()),
        referred_ratio=sums.referred_ratio / images,
    )


def _add(sums: _Sums, output: DetectorOutput, share: float) -> None:
    features = output.features
    sums.images += len(features.image_sizes)
    there = [~padding for padding in features.split_levels(features.padding_mask.cpu())]
    tokens = torch.stack([level.sum(1) for level in there], dim=1).double()
    sums.tokens += tokens.sum(0)
    sums.kept += kept_by_level(output).sum(0).double().cpu()
    sums.keep_ratio += sum(output.keep_ratios)
    if output.memory.pooled is not None:
        sums.pooled = (sums.pooled or 0) + sum(output.memory.pooled.counts)
    sums.corr_kept += float(attention_share(output, kept_tokens(output)).sum())
    sums.has_scores = output.scores is not None
    if sums.has_scores:
        sums.corr += float(attention_share(output, best_tokens(output, share)).sum())
    _add_referred(sums, output, tokens)


def _add_referred(sums: _Sums, output: DetectorOutput, tokens: Float[Tensor, "B L"]) -> None:
    features = output.features
    referred = features.split_levels(referred_tokens(output).cpu())
    counts = torch.stack([level.sum(1) for level in referred], dim=1).double()
    sums.referred += (counts / tokens.clamp(min=1)).sum(0)
    sums.referred_ratio += float((counts.sum(1) / tokens.sum(1)).sum())
    mass = features.split_levels(_mass(output, "token_statistics").double().cpu())
    by_level = torch.stack([level.sum(1) for level in mass], dim=1)
    sums.mass += (by_level / by_level.sum(1, keepdim=True)).sum(0)

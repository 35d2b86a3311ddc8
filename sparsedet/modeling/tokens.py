"""Tokens that are kept, and tokens that have no cell.

Axes as in ``sparsedet.modeling.stages``; ``P`` pooled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsedet.layers.constants import constants
from sparsedet.layers.precision import without_autocast

Size = tuple[int, int]


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens an encoder layer updates.

    Attributes:
        max_counts: the most tokens that each image keeps, host integers; one entry where
            ``MultiScaleFeatures.image_sizes`` has one.
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

    def rows(self, num_tokens: int) -> Int[Tensor, " R"]:
        """Where the kept tokens are among those of all images, one image's after another's.

        Only for selections with indices.

        Args:
            num_tokens: tokens of the padded map.
        """
        assert self.indices is not None
        batch = self.indices.shape[0]
        if batch == 1:
            return self.indices[0]
        first = torch.arange(batch, device=self.indices.device)[:, None] * num_tokens
        return (self.indices + first).flatten()

    def gather(self, x: Tensor) -> Tensor:
        """Rows ``[B K ...]`` of the kept tokens of ``x[B N ...]``."""
        if self.indices is None:
            return x
        rows = x.flatten(0, 1).index_select(0, self.rows(x.shape[1]))
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
        flat.index_copy_(0, self.rows(base.shape[1]), update.flatten(0, 1).to(base.dtype))
        return base

    def prefix(self, counts: Sequence[int]) -> TokenSelection:
        """The best ``counts[i]`` of the tokens kept of image i (a cascade is nested prefixes)."""
        assert self.indices is not None
        counts = tuple(counts)
        width = max(counts)
        valid = filler_mask(counts, width, self.indices.device)
        if not self.exact:
            assert self.valid is not None
            own = self.valid[:, :width]
            valid = own if valid is None else own & valid
        return TokenSelection(
            counts,
            self.indices[:, :width],
            valid,
            None if self.weight is None else self.weight[:, :width],
            self.ranking,
            self.exact,
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
            self.indices.shape[0], num_tokens, dtype=torch.bool, device=self.indices.device
        )
        return empty.scatter(1, self.indices, kept)


def gather_rows(x: Float[Tensor, "B N D"], indices: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q D"]:
    """The rows of ``x`` at the ``indices`` of each image."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def marked_tokens(
    marked: Bool[Tensor, "B N"], counts: tuple[int, ...], *, exact: bool = True
) -> TokenSelection:
    """The tokens that are ``marked``, in the order of the map.

    Args:
        marked: True at the tokens.
        counts: how many each image has, host integers; the most it may have, unless ``exact``.
        exact: whether each image has that many.
    """
    width = max(counts)
    # marked tokens come first; those after them are distinct from them, as fillers have to be
    ordered = marked.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    indices = ordered.indices[:, :width]
    valid = filler_mask(counts, width, indices.device) if exact else marked.gather(1, indices)
    return TokenSelection(counts, indices, valid, exact=exact)


def filler_mask(
    counts: Sequence[int], width: int, device: torch.device
) -> Bool[Tensor, "B K"] | None:
    """True at the first ``counts[i]`` of ``width`` places; None when every place is used."""
    if all(count == width for count in counts):
        return None
    limits = constants(counts, device, torch.int64)
    return torch.arange(width, device=device) < limits[:, None]


def union(
    selections: Sequence[TokenSelection], num_valid: tuple[int, ...], num_tokens: int
) -> TokenSelection:
    """The tokens that at least one selection keeps; without weights where these are not nested.

    Args:
        selections: of the layers of one pass.
        num_valid: tokens of each image, see ``MultiScaleFeatures``.
        num_tokens: tokens of the padded map.
    """
    different = list({id(each): each for each in selections}.values())
    for each in different:
        if each.indices is None:
            return each
    most = max(different, key=lambda each: each.max_counts)
    if all(each is most or each.begins(most) for each in different):
        return most
    counts = tuple(
        min(sum(kept), valid)
        for *kept, valid in zip(*(each.max_counts for each in different), num_valid, strict=True)
    )
    kept = torch.stack([each.mask(num_tokens) for each in different]).any(0)
    best = kept.float().topk(max(counts), dim=1)
    return TokenSelection(counts, best.indices, best.values > 0, exact=False)


@dataclass(frozen=True)
class PooledTokens:
    """Tokens without a cell, such as those which stand for the cells that no layer updates.

    PnP-DETR, section 3.2. Together with the kept tokens they are all that a decoder reads.

    Attributes:
        tokens: the tokens.
        pos: their positions.
        shares: how much of every cell is in each of them; nothing of padding and of kept cells. The
            shares of a token sum to 1. None = they stand for no cell.
        valid: False = a filler, as of an image that has no cell left; None = there are none.
        kept: the cells that stand for themselves.
    """

    tokens: Float[Tensor, "B P C"]
    pos: Float[Tensor, "B P C"]
    shares: Float[Tensor, "B P N"] | None
    valid: Bool[Tensor, "B P"] | None
    kept: TokenSelection

    @property
    def counts(self) -> tuple[int, ...]:
        """Pooled tokens of each image; unless all have some, this waits for the device."""
        batch, number = self.tokens.shape[:2]
        return (number,) * batch if self.valid is None else tuple(self.valid.sum(1).tolist())

    def seen(self, valid: Bool[Tensor, "B K"] | None, count: int) -> Bool[Tensor, "B S"] | None:
        """True at what must be read of ``count`` kept tokens and the pooled ones; None = all.

        Args:
            valid: which of the kept ones; None = all.
            count: kept tokens of an image, fillers among them.
        """
        if valid is None and self.valid is None:
            return None
        batch, pooled = self.tokens.shape[:2]
        valid = self._all(batch, count) if valid is None else valid
        return torch.cat((valid, self._all(batch, pooled) if self.valid is None else self.valid), 1)

    def _all(self, batch: int, count: int) -> Bool[Tensor, "B S"]:
        return torch.ones(batch, count, dtype=torch.bool, device=self.tokens.device)

    def spread(self, x: Float[Tensor, "B S"], num_tokens: int) -> Float[Tensor, "B N"]:
        """What kept and pooled tokens have of something, in the cells they stand for, in fp32.

        Args:
            x: of the kept tokens, then of the pooled ones.
            num_tokens: tokens of the padded map.
        """
        assert self.shares is not None
        number = self.tokens.shape[1]
        own, pooled = x.float().split((x.shape[1] - number, number), dim=1)
        with without_autocast(x.device):
            cells = (pooled[:, None] @ self.shares.float())[:, 0]
        if self.kept.indices is None:
            return cells + own
        if self.kept.valid is not None:
            own = own.masked_fill(~self.kept.valid, 0.0)
        return cells.scatter_add(1, self.kept.indices, own)

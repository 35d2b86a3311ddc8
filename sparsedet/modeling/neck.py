"""Necks: backbone maps to maps of one width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from sparsedet.modeling.parts import Assembly
from sparsedet.registry import NECKS


@NECKS.register()
class ChannelMapper(nn.Module):
    """A 1x1 convolution per backbone map, and strided 3x3 ones for coarser levels, with norms.

    Deformable DETR, section 4.1: the extra level is computed from the coarsest backbone map itself.

    Args:
        in_channels: channels of each backbone map by name, fine to coarse.
        strides: pixels per cell of these maps.
        embed_dim: channels of the result, divisible by 32 for GroupNorm.
        num_levels: levels of the result; levels beyond the backbone maps come from strided
            convolutions.
        norm: "group" = GroupNorm of 32 groups after every convolution; None = no norm (DETR).

    Raises:
        ValueError: if the numbers of names, strides and levels do not fit.
    """

    takes_num_levels = True

    def __init__(
        self,
        in_channels: Mapping[str, int],
        strides: Sequence[int],
        *,
        embed_dim: int = 256,
        num_levels: int = 4,
        norm: Literal["group"] | None = "group",
    ) -> None:
        super().__init__()
        if len(strides) != len(in_channels) or num_levels < len(in_channels):
            raise ValueError(
                f"ChannelMapper: {len(in_channels)} maps in in_channels need as many strides and "
                "at least as many "
                f"levels, got {len(strides)} strides and num_levels={num_levels}. Set "
                "model.neck.strides and "
                "model.num_levels."
            )
        if norm not in ("group", None):
            raise ValueError(
                f"ChannelMapper.norm must be 'group' or null, got {norm!r}. Set model.neck.norm."
            )
        if norm and embed_dim % 32:
            raise ValueError(
                "ChannelMapper.embed_dim must be divisible by 32 (groups of the norm), got "
                f"{embed_dim}. "
                "Set model.embed_dim."
            )
        self.in_features, self.in_channels = tuple(in_channels), dict(in_channels)
        self.embed_dim = embed_dim
        extra = num_levels - len(in_channels)
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra)))
        self.convs = nn.ModuleList(
            _block(c, embed_dim, kernel=1, norm=norm) for c in in_channels.values()
        )
        last = list(in_channels.values())[-1]
        self.extra_convs = nn.ModuleList(
            _block(last if i == 0 else embed_dim, embed_dim, kernel=3, norm=norm)
            for i in range(extra)
        )

    def check(self, assembly: Assembly) -> None:
        """Refuse strides that differ from those of the backbone, if it has ``strides``.

        Raises:
            ValueError: the message says what to change.
        """
        told = getattr(assembly.backbone, "strides", None)
        if not isinstance(told, Mapping) or not all(name in told for name in self.in_features):
            return
        expected = [told[name] for name in self.in_features]
        got = list(self.strides[: len(expected)])
        if got != expected:
            raise ValueError(
                f"ChannelMapper.strides must be {expected} as in "
                f"{type(assembly.backbone).__name__}, got {got}. Set model.neck.strides."
            )

    def coarsest_map(self, num_levels: int) -> str:
        """The coarsest backbone map that the finest ``num_levels`` levels need."""
        return self.in_features[min(num_levels, len(self.in_features)) - 1]

    def forward(
        self, maps: Mapping[str, Tensor], *, num_levels: int | None = None
    ) -> tuple[Tensor, ...]:
        """Map the named ``[B c h w]`` to one ``[B embed_dim h w]`` per level, fine to coarse.

        Args:
            maps: the maps of the backbone; those coarser than ``coarsest_map`` may be missing.
            num_levels: number of levels to compute, the finest ones; None = all.

        Raises:
            ValueError: if the backbone does not give a map of that name and width.
        """
        count = len(self.strides) if num_levels is None else num_levels
        names = self.in_features[:count]
        needed = {name: self.in_channels[name] for name in names}
        _require_maps(needed, maps, "ChannelMapper", key="model.neck.in_channels")
        levels = [conv(maps[name]) for name, conv in zip(names, self.convs, strict=False)]
        x = maps[names[-1]]
        for conv in self.extra_convs[: count - len(names)]:
            x = conv(x)
            levels.append(x)
        return tuple(levels)


class Pyramid(FeaturePyramidNetwork):
    """torchvision's feature pyramid of named maps, with five levels.

    With four maps it adds one level by subsampling, with three maps two by convolutions.

    Args:
        in_channels: channels of the maps by name, fine to coarse.
        embed_dim: channels of the result.
        norm: follows every convolution of the pyramid itself; None = no norm.

    Raises:
        ValueError: for another number of maps.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        *,
        embed_dim: int,
        norm: Callable[..., nn.Module] | None = None,
    ) -> None:
        if len(in_channels) not in (3, 4):
            raise ValueError(
                f"Pyramid.in_channels must be of three or four maps, got {dict(in_channels)}. "
                "Set model.in_channels."
            )
        few = len(in_channels) == 3
        extra = LastLevelP6P7(embed_dim, embed_dim) if few else LastLevelMaxPool()
        super().__init__(list(in_channels.values()), embed_dim, extra, norm_layer=norm)
        self.in_channels = dict(in_channels)

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map the named ``[B c h w]`` to ``[B embed_dim h w]``; added levels get further names.

        Raises:
            ValueError: if the backbone does not give a map of that name and width.
        """
        _require_maps(self.in_channels, x, "Pyramid", key="model.in_channels")
        return super().forward({name: x[name] for name in self.in_channels})


def _require_maps(
    in_channels: Mapping[str, int], maps: Mapping[str, Tensor], owner: str, *, key: str
) -> None:
    """Refuse maps of other names or widths."""
    if missing := [name for name in in_channels if name not in maps]:
        raise ValueError(
            f"{owner}.in_channels names {missing}, but the backbone has {sorted(maps)}. "
            f"Set {key} to maps of model.backbone."
        )
    widths = {name: maps[name].shape[1] for name in in_channels}
    if widths != in_channels:
        raise ValueError(
            f"{owner}.in_channels must be the channels of the backbone's maps {widths}, got "
            f"{in_channels}. Set {key}."
        )


def _block(in_channels: int, out_channels: int, *, kernel: int, norm: str | None) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2
    )
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, _GroupNorm(32, out_channels)) if norm else nn.Sequential(conv)


class _GroupNorm(nn.GroupNorm):
    """Also accepts groups of one value (one channel, one cell), whose result is the bias.

    torch refuses this for a batch of one image, but not for two.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

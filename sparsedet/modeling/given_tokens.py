"""Checks of tokens that another codebase flattened."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsedet.layers.arguments import SpatialShapes, on_host
from sparsedet.modeling.tokens import Size


def pairs(sizes: SpatialShapes) -> tuple[Size, ...]:
    """Sizes as Python integers; reading a tensor on an accelerator synchronizes."""
    return tuple((int(h), int(w)) for h, w in on_host(sizes))


def checked_shapes(spatial_shapes: SpatialShapes, tokens: Tensor, pos: Tensor) -> tuple[Size, ...]:
    """(H, W) of each level, checked against tokens and positions.

    Raises:
        ValueError: they do not fit.
    """
    for name, given in (("tokens", tokens), ("pos", pos)):
        if not isinstance(given, Tensor):
            raise given_error(name, "a tensor", type(given).__name__)
    try:
        shapes = pairs(spatial_shapes)
    except (TypeError, ValueError) as error:
        form = "(height, width) of each level, a list, a tuple or a tensor"
        raise given_error("spatial_shapes", form, str(spatial_shapes)) from error
    total = sum(h * w for h, w in shapes)
    if tokens.ndim != 3 or tokens.shape[1] != total:
        raise given_error(
            "tokens",
            f"of shape (B, {total}, C) for maps of {list(shapes)}",
            f"{tuple(tokens.shape)}. Pass tokens.transpose(0, 1) if the batch is second",
        )
    if pos.shape != tokens.shape:
        raise given_error(
            "pos",
            f"of shape {tuple(tokens.shape)} as tokens",
            f"{tuple(pos.shape)}. Expand it over the batch, with the level embedding added",
        )
    return shapes


def sizes_in_mask(
    padding_mask: Tensor, shapes: tuple[Size, ...], tokens: Tensor
) -> tuple[tuple[Size, ...], ...]:
    """Valid rows and columns of each image and level, by one copy to the host.

    Raises:
        ValueError: the shape, dtype or pattern of the mask is wrong.
    """
    kinds = (torch.bool, torch.uint8)
    if not isinstance(padding_mask, Tensor):
        raise given_error(
            "padding_mask", "a tensor", f"{type(padding_mask).__name__}. True is padding"
        )
    if padding_mask.dtype not in kinds or padding_mask.shape != tokens.shape[:2]:
        raise given_error(
            "padding_mask",
            f"bool or uint8 of shape {tuple(tokens.shape[:2])}",
            f"{padding_mask.dtype} {tuple(padding_mask.shape)}. True is padding",
        )
    facts = []
    for level, (h, w) in zip(
        padding_mask.bool().split([h * w for h, w in shapes], dim=1), shapes, strict=True
    ):
        shown = ~level.unflatten(1, (h, w))
        rows, columns = shown[:, :, 0].sum(1), shown[:, 0].sum(1)
        down = torch.arange(h, device=shown.device) < rows[:, None]
        across = torch.arange(w, device=shown.device) < columns[:, None]
        fits = ((down[:, :, None] & across[:, None]) == shown).flatten(1).all(1) & (rows > 0)
        facts.append(torch.stack((rows, columns, fits.long()), dim=-1))
    found = torch.stack(facts, dim=1).tolist()
    for image, levels in enumerate(found):
        for level, (_, _, fits) in enumerate(levels):
            if not fits:
                raise given_error(
                    "padding_mask",
                    "False on a rectangle at the top left of every level and True elsewhere",
                    f"another form for image {image} on level {level}. Pass ~mask where True means "
                    "that a token is valid",
                )
    return tuple(tuple((rows, columns) for rows, columns, _ in levels) for levels in found)


def require_fit(
    sizes: Sequence[Sequence[Size]],
    found: Sequence[Sequence[Size]],
    strides: Sequence[int],
    fits: Callable[[int, int], bool],
) -> None:
    """Refuse sizes of images, or strides, that do not fit the maps.

    Args:
        sizes: map size of each image and level that follows from the image size.
        found: the actual map sizes.
        strides: the strides from which ``sizes`` were computed.
        fits: whether an expected length fits an actual one.

    Raises:
        ValueError: they do not fit.
    """
    lengths = [
        [length for image in each for size in image for length in size] for each in (sizes, found)
    ]
    if len(sizes) != len(found) or not all(map(fits, *lengths)):
        raise given_error(
            "image_sizes",
            f"(h, w) of {len(found)} images that have maps of {[list(each) for each in found]}",
            f"sizes with maps of {[list(each) for each in sizes]} by strides {list(strides)}. Set "
            "strides to the pixels per cell of every level",
        )


def given_error(argument: str, expected: str, got: str) -> ValueError:
    """The error for an invalid argument."""
    return ValueError(f"MultiScaleFeatures.from_tokens: {argument} must be {expected}, got {got}.")

"""Whole figures: what a detector finds, beside the tokens that its encoder keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from sparsedet.modeling.inputs import make_tiles
from sparsedet.modeling.stages import DetectorOutput, Glance, Size
from sparsedet.structures import Instances
from sparsedet.visualization.boxes import draw_detections
from sparsedet.visualization.ink import rgb, steps
from sparsedet.visualization.layout import GAP, LINE, Panel, Swatch, grid, page, stack
from sparsedet.visualization.tiles import draw_tile_scores, draw_tiles
from sparsedet.visualization.tokens import (
    OBJECT,
    LevelTokens,
    draw_kept_tokens,
    draw_layer_tokens,
    draw_scores,
    token_levels,
)

_PANEL_SIDE = 360  # wanted long side of a level's picture, in pixels
_PANEL_LIMIT = 900  # and how far it grows to give every cell this many pixels
_CELL_SIDE = 4
_MANY_LIMIT = 520  # the same where eight panels or more are below the detections
_TALLEST = 1400  # pixels of the detections above them


def token_figure(
    picture: Image.Image,
    output: DetectorOutput,
    instances: Instances,
    *,
    image: int = 0,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.3,
    title: str = "",
    show_scores: bool = False,
) -> Image.Image:
    """Detections on the left, on the right the tokens that the encoder keeps, level by level.

    Where the detector chose tiles of the picture, the panels are below the detections, and two
    more show which tiles it looked at and the score of each.

    Args:
        picture: the image as it was before it was resized for the model.
        output: of ``TokenSparseDetector.detect``.
        instances: of ``TokenSparseDetector.postprocess``, for the same image.
        image: which image of the batch.
        class_names: by class index.
        score_threshold: detections below are left out.
        title: first words above the figure, such as the file's name.
        show_scores: add a row with the token scores, where there is a scorer.
    """
    levels = token_levels(output, image)
    image_size = output.features.image_sizes[image]
    small = _resized(picture, _panel_size(image_size, levels, output.glance))
    panels = [
        (_level_title(number, level), draw_kept_tokens(small, level, image_size))
        for number, level in enumerate(levels)
    ]
    tiles = _tile_panels(small, output, image)
    panels = [*tiles, *panels]
    columns = -(-len(panels) // 2)
    if show_scores and output.scores is not None:
        columns = len(levels)
        scores = _score_panels(small, levels, image_size)
        panels = [*panels[len(tiles) :], *scores, *tiles]
    parts = _with_detections(
        grid(panels, columns), picture, output, instances, image, class_names, score_threshold
    )
    legend: list[str | Swatch] = [_summary(levels, output, image)]
    if not _layers_agree(levels):
        legend = [f"{legend[0]};  kept by", *_swatches(len(output.selections)), "layers"]
    if output.objects:
        legend += [" ", Swatch("", OBJECT), "object tokens"]
    return page(_head(title, picture, image_size), parts, legend)


def layer_figure(
    picture: Image.Image,
    output: DetectorOutput,
    instances: Instances,
    *,
    image: int = 0,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.3,
    title: str = "",
) -> Image.Image:
    """Detections on the left, on the right what every encoder layer keeps, all levels in one.

    Where the encoder has object tokens, a second row shows those of every layer.

    Args:
        picture: see ``token_figure``, as for all others.
        output: of ``TokenSparseDetector.detect``.
        instances: of ``TokenSparseDetector.postprocess``, for the same image.
        image: which image of the batch.
        class_names: by class index.
        score_threshold: detections below are left out.
        title: first words above the figure.
    """
    levels = token_levels(output, image)
    image_size = output.features.image_sizes[image]
    small = _resized(picture, _panel_size(image_size, levels, output.glance))
    layers = len(output.selections)
    panels = [
        (_layer_title(levels, layer), draw_layer_tokens(small, levels, layer, image_size))
        for layer in range(layers)
    ]
    if output.objects:
        panels += [
            (
                _object_title(levels, layer),
                draw_layer_tokens(small, levels, layer, image_size, objects=True),
            )
            for layer in range(layers)
        ]
    panels += _tile_panels(small, output, image)
    parts = _with_detections(
        grid(panels, layers), picture, output, instances, image, class_names, score_threshold
    )
    summary = f"{_summary(levels, output, image)};  the finest level that is kept in a place:"
    colors = _swatches(len(levels))[::-1]
    legend = [Swatch(str(number), each.color) for number, each in enumerate(colors, start=1)]
    return page(_head(title, picture, image_size), parts, [summary, *legend])


def level_figure(
    picture: Image.Image,
    outputs: Mapping[str, DetectorOutput],
    *,
    image: int = 0,
    title: str = "",
) -> Image.Image:
    """The tokens that several models keep, level by level, the models side by side.

    Args:
        picture: see ``token_figure``.
        outputs: of ``TokenSparseDetector.detect``, by the names of the models.
        image: which image of the batch.
        title: first words above the figure.

    Raises:
        ValueError: the models have other levels.
    """
    models = {name: token_levels(output, image) for name, output in outputs.items()}
    strides = {name: tuple(level.stride for level in levels) for name, levels in models.items()}
    if len(set(strides.values())) > 1:
        raise ValueError(f"level_figure.outputs must have the same strides, got {strides}.")
    sizes = {name: output.features.image_sizes[image] for name, output in outputs.items()}
    first = next(iter(models))
    glances = [output.glance for output in outputs.values() if output.glance is not None]
    size = _panel_size(sizes[first], models[first], glances[0] if glances else None)
    small = _resized(picture, size)
    panels: list[Panel] = []
    for number in range(len(strides[first])):
        for name, levels in models.items():
            place, kept = _level_title(number, levels[number])
            drawn = draw_kept_tokens(small, levels[number], sizes[name])
            panels.append(((f"{name}: {place}", kept), drawn))
    columns = len(models) * (2 if len(models) < 3 else 1)
    legend: list[str | Swatch] = []
    for name, levels in models.items():
        legend.append(f"{name}: {_summary(levels, outputs[name], image)}  ")
    layers = max(len(output.selections) for output in outputs.values())
    if not all(map(_layers_agree, models.values())):
        legend += ["kept by", *_swatches(layers), "layers"]
    if any(output.objects for output in outputs.values()):
        legend += [" ", Swatch("", OBJECT), "object tokens"]
    return page(_head(title, picture, sizes[first]), [grid(panels, columns)], legend)


# --- words ----------------------------------------------------------------------------------------


def _head(title: str, picture: Image.Image, image_size: Size) -> str:
    height, width = image_size
    size = f"{picture.width} x {picture.height} pixels, model input {width} x {height}"
    return f"{title}   {size}".strip()


def _level_title(number: int, level: LevelTokens) -> tuple[str, str]:
    counts, total = level.counts, level.num_tokens
    if len(set(counts)) == 1:
        kept = f"{counts[0]} of {total} kept ({_percent(counts[0] / max(total, 1))})"
    else:
        kept = f"kept by layer: {', '.join(map(str, counts))} of {total}"
    seen = level.num_tokens / level.num_cells
    place = "" if level.there is None else f", {_percent(seen)} looked at"
    return f"level {number + 1}, stride {level.stride}{place}", kept


def _layer_title(levels: Sequence[LevelTokens], layer: int) -> tuple[str, str]:
    kept = sum(level.counts[layer] for level in levels)
    total = sum(level.num_tokens for level in levels)
    return f"encoder layer {layer + 1}", f"{kept} of {total} kept ({_percent(kept / total)})"


def _object_title(levels: Sequence[LevelTokens], layer: int) -> tuple[str, str]:
    count = sum(int(level.objects[layer].sum()) for level in levels if level.objects is not None)
    return f"object tokens of layer {layer + 1}", f"{count} attend to each other"


def _detections_title(instances: Instances, threshold: float) -> tuple[str, str]:
    scores = instances.scores
    count = int((scores >= threshold).sum())
    best = f"best score {float(scores.max()):.2f}" if len(scores) else ""
    return f"{count} detection{'' if count == 1 else 's'}, score >= {threshold:g}", best


def _summary(levels: Sequence[LevelTokens], output: DetectorOutput, image: int) -> str:
    layers, total = len(output.selections), output.features.num_valid[image]
    if all(each.indices is None for each in output.selections):
        return f"dense encoder: all {total} tokens in each of {layers} layers"
    kept = f"tokens kept: {_percent(output.keep_ratios[image])} of {total}"
    which = "the same ones in each" if _layers_agree(levels) else "mean"
    pooled = output.memory.pooled
    count = 0 if pooled is None else pooled.counts[image]
    others = f"; the others pooled into {count}" if count else ""
    return f"{kept}, {which} of {layers} encoder layers{others}"


def _layers_agree(levels: Sequence[LevelTokens]) -> bool:
    return all((level.kept == level.kept[:1]).all() for level in levels)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- panels ---------------------------------------------------------------------------------------


def _swatches(count: int) -> list[Swatch]:
    """The numbers from 1 on, in the colors from violet to yellow."""
    return [Swatch(str(n), rgb(color)) for n, color in enumerate(steps(count), start=1)]


def _panel_size(image_size: Size, levels: Sequence[LevelTokens], glance: Glance | None) -> Size:
    """A size in which cells have a whole number of pixels, the finest ones if that is not large."""
    longest, limit = max(image_size), _PANEL_LIMIT if glance is None else _MANY_LIMIT
    strides = [level.stride for level in levels]
    fitting = strides[:1] if glance is None else [x for x in strides if longest <= x * limit]
    stride = (fitting or strides[-1:])[0]
    cell = stride * _PANEL_SIDE / longest
    cell = max(cell, min(_CELL_SIDE, stride * limit / longest))
    scale = max(1, round(cell)) / stride
    return max(1, round(scale * image_size[0])), max(1, round(scale * image_size[1]))


def _resized(picture: Image.Image, size: Size) -> Image.Image:
    return picture.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _with_detections(
    panels: Image.Image,
    picture: Image.Image,
    output: DetectorOutput,
    instances: Instances,
    image: int,
    class_names: Sequence[str] | None,
    score_threshold: float,
) -> list[Image.Image]:
    """The detections beside the panels; above them, larger, where tiles were chosen."""
    if output.glance is None:
        room = (round(1.5 * panels.width), panels.height - 2 * LINE)
    else:
        room = (panels.width, _TALLEST)
        tiles = make_tiles(output.glance, image, (picture.height, picture.width))
        picture = draw_tiles(picture, tiles, dim=1.0)
    found = _detections(picture, instances, room, class_names, score_threshold)
    return [found, panels] if output.glance is None else [stack([found, panels], gap=GAP)]


def _detections(
    picture: Image.Image,
    instances: Instances,
    room: tuple[int, int],
    class_names: Sequence[str] | None,
    score_threshold: float,
) -> Image.Image:
    """The detections as large as (width, height) let them be."""
    scale = min(room[0] / picture.width, room[1] / picture.height)
    large = picture.resize(
        (max(1, round(scale * picture.width)), max(1, round(scale * picture.height))),
        Image.Resampling.LANCZOS,
    )
    found = draw_detections(
        large, instances, class_names=class_names, score_threshold=score_threshold
    )
    return grid([(_detections_title(instances, score_threshold), found)], 1)


def _tile_panels(small: Image.Image, output: DetectorOutput, image: int) -> list[Panel]:
    """Where it looked, and the scores that say so; nothing where it saw all of the picture."""
    glance = output.glance
    if glance is None:
        return []
    tiles = make_tiles(glance, image, glance.tiles.image_sizes[image])
    count, side = int(tiles.looked.sum()), glance.tiles.strides[0]
    looked = f"looked at {count} of {len(tiles)} tiles ({_percent(count / len(tiles))})"
    panels = [((looked, f"of {side} x {side} pixels of the input"), draw_tiles(small, tiles))]
    if glance.scores is not None:
        bounds = float(tiles.scores.min()), float(tiles.scores.max())
        words = f"{bounds[0]:.2f} (violet) to {bounds[1]:.2f} (yellow)"
        title = ("best score in each tile at a glance", f"logits, {words}")
        panels.append((title, draw_tile_scores(small, tiles, bounds)))
    return panels


def _score_panels(
    small: Image.Image, levels: Sequence[LevelTokens], image_size: Size
) -> list[Panel]:
    scores = np.concatenate([level.scores.ravel() for level in levels if level.scores is not None])
    bounds = float(scores.min()), float(scores.max())
    title = (f"score logits, {bounds[0]:.1f} (violet)", f"to {bounds[1]:.1f} (yellow)")
    return [(title, draw_scores(small, level, image_size, bounds)) for level in levels]

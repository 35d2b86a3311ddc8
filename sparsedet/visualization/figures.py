"""Figures that show detections and the tokens that the encoder keeps."""

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

_PANEL_SIDE = 360  # preferred long side of a level's picture, in pixels
_PANEL_LIMIT = 900  # upper limit of the long side, if cells need more pixels
_CELL_SIDE = 4  # pixels per cell
_MANY_LIMIT = 520  # upper limit of the long side if eight panels or more are below the detections
_TALLEST = 1400  # maximum height of the detections above these panels


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
    """Detections on the left, and on the right a panel of kept tokens for each level.

    If the detector chooses tiles, the panels are below the detections, and two more panels show
    the chosen tiles and the score of each tile.

    Args:
        picture: the image before it was resized for the model.
        output: output of ``TokenSparseDetector.detect``.
        instances: result of ``TokenSparseDetector.postprocess`` for the same image.
        image: index of the image in the batch.
        class_names: names by class index.
        score_threshold: detections with lower scores are left out.
        title: first words above the figure, such as the file name.
        show_scores: add a row with the token scores, if there is a scorer.
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
    """Detections on the left, and on the right a panel of kept tokens for each encoder layer.

    Each panel combines all levels. If the encoder has object tokens, a second row shows those.

    Args:
        picture: the image before it was resized for the model.
        output: output of ``TokenSparseDetector.detect``.
        instances: result of ``TokenSparseDetector.postprocess`` for the same image.
        image: index of the image in the batch.
        class_names: names by class index.
        score_threshold: detections with lower scores are left out.
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
    summary = f"{_summary(levels, output, image)};  color: the finest level with a kept token:"
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
    """A panel of kept tokens for each level and model, the models side by side.

    Args:
        picture: the image before it was resized for the model.
        outputs: outputs of ``TokenSparseDetector.detect``, by model name.
        image: index of the image in the batch.
        title: first words above the figure.

    Raises:
        ValueError: the levels of the models differ.
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
    place = "" if level.there is None else f", {_percent(seen)} processed"
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
    """The numbers from 1 to `count`, in colors from violet to yellow."""
    return [Swatch(str(n), rgb(color)) for n, color in enumerate(steps(count), start=1)]


def _panel_size(image_size: Size, levels: Sequence[LevelTokens], glance: Glance | None) -> Size:
    """A size in which the finest cells have a whole number of pixels, if it is not too large."""
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
    """The detections beside the panels; if tiles were chosen, larger and above the panels."""
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
    """The detections, as large as fits into `room` (width, height)."""
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
    """Panels of the chosen tiles and of their scores; none if the model does not choose tiles."""
    glance = output.glance
    if glance is None:
        return []
    tiles = make_tiles(glance, image, glance.tiles.image_sizes[image])
    count, side = int(tiles.looked.sum()), glance.tiles.strides[0]
    looked = f"{count} of {len(tiles)} tiles processed ({_percent(count / len(tiles))})"
    panels = [((looked, f"of {side} x {side} pixels of the input"), draw_tiles(small, tiles))]
    if glance.scores is not None:
        bounds = float(tiles.scores.min()), float(tiles.scores.max())
        words = f"{bounds[0]:.2f} (violet) to {bounds[1]:.2f} (yellow)"
        title = ("best score in each tile", f"logits, {words}")
        panels.append((title, draw_tile_scores(small, tiles, bounds)))
    return panels


def _score_panels(
    small: Image.Image, levels: Sequence[LevelTokens], image_size: Size
) -> list[Panel]:
    scores = np.concatenate([level.scores.ravel() for level in levels if level.scores is not None])
    bounds = float(scores.min()), float(scores.max())
    title = (f"score logits, {bounds[0]:.1f} (violet)", f"to {bounds[1]:.1f} (yellow)")
    return [(title, draw_scores(small, level, image_size, bounds)) for level in levels]

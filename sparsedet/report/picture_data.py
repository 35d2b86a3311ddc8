"""What a page holds of one picture: the picture, and what each model makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparsedet.modeling.inputs import make_tiles
from sparsedet.modeling.stages import DetectorOutput
from sparsedet.predictor import Detections, Picture
from sparsedet.report.looking import Attention, Look
from sparsedet.report.packing import Pack, quantize
from sparsedet.visualization import LevelTokens, token_levels

_LEAST_SCORE = 0.05  # of detections that a page holds
_MOST = 100
_POINT_UNITS = 8192  # of the image's side; 16 bits reach two sides beyond it


def view_data(looks: Sequence[Look], costs: Sequence[Any], picture: Picture) -> dict[str, Any]:
    """What one model makes of one picture.

    Args:
        looks: the passes, by keep ratio.
        costs: of each pass, see ``StageCosts``.
        picture: that was looked at.

    Returns:
        Plain values for JSON. ``pack`` holds arrays, to which pairs of first byte and length refer;
        ``docs/explain.md`` says what is in them.
    """
    pack = Pack()
    passes = [
        _pass_data(look, cost, picture, pack) for look, cost in zip(looks, costs, strict=True)
    ]
    data: dict[str, Any] = {"passes": passes, "input": None, "levels": [], "tiles": None}
    output = looks[0].output
    if output is not None:
        data |= _map_data(output, pack)
    data["pack"] = pack.text()
    return data


def _map_data(output: DetectorOutput, pack: Pack) -> dict[str, Any]:
    """What is the same at every keep ratio: the levels, which cells are there, and the tiles."""
    levels = token_levels(output)
    there = [_there(level) for level in levels]
    return {
        "input": list(output.features.image_sizes[0]),
        "levels": [
            {
                "stride": level.stride,
                "rows": level.kept.shape[1],
                "columns": level.kept.shape[2],
                "tokens": level.num_tokens,
            }
            for level in levels
        ],
        "there": None if all(map(np.all, there)) else pack.add_bits(_joined(there)),
        "tiles": _tile_data(output),
    }


def _there(level: LevelTokens) -> np.ndarray:
    return np.ones(level.kept.shape[1:], dtype=bool) if level.there is None else level.there


def _joined(levels: Sequence[np.ndarray]) -> np.ndarray:
    """Cells of all levels, one after the other, rows first."""
    return np.concatenate([level.ravel() for level in levels])


def _tile_data(output: DetectorOutput) -> dict[str, Any] | None:
    if output.glance is None:
        return None
    tiles = make_tiles(output.glance, 0, (1, 1)).to("cpu")
    return {
        "boxes": tiles.boxes.tensor.double().numpy().round(5).tolist(),
        "scores": tiles.scores.double().numpy().round(3).tolist(),
        "scored": output.glance.scores is not None,
        "looked": tiles.looked.int().tolist(),
    }


def _pass_data(look: Look, cost: Any, picture: Picture, pack: Pack) -> dict[str, Any]:
    data: dict[str, Any] = {"ratio": look.ratio, "cost": cost}
    data["detections"] = _detection_data(look.found, picture)
    data["attention"] = None
    if look.output is None:
        return data
    data |= _token_data(look.output, pack)
    if look.attention is not None:
        shown = len(data["detections"]["scores"])
        data["attention"] = _attention_data(look.attention, look.output, shown, pack)
    return data


def _detection_data(found: Detections, picture: Picture) -> dict[str, Any]:
    height, width = picture.size
    shown = found.above(_LEAST_SCORE)
    boxes = shown.boxes_xyxy.astype(float) / (width, height, width, height)
    return {
        "boxes": boxes[:_MOST].round(5).tolist(),
        "scores": shown.scores[:_MOST].astype(float).round(4).tolist(),
        "labels": shown.labels[:_MOST].tolist(),
    }


def _token_data(output: DetectorOutput, pack: Pack) -> dict[str, Any]:
    """Which tokens each layer keeps, and their scores."""
    levels = token_levels(output)
    layers = range(len(output.selections))
    data: dict[str, Any] = {
        "keptShare": round(output.keep_ratios[0], 5),
        "counts": [[level.counts[layer] for level in levels] for layer in layers],
        "kept": [pack.add_bits(_joined([level.kept[i] for level in levels])) for i in layers],
        "objects": None,
        "scores": None,
        "pooled": None if output.memory.pooled is None else output.memory.pooled.counts[0],
    }
    objects = [level.objects for level in levels if level.objects is not None]
    if objects:
        data["objects"] = [pack.add_bits(_joined([each[i] for each in objects])) for i in layers]
    scores = [level.scores for level in levels if level.scores is not None]
    if scores:
        data["scores"] = _score_data(scores, levels, pack)
    return data


def _score_data(
    scores: Sequence[np.ndarray], levels: Sequence[LevelTokens], pack: Pack
) -> dict[str, Any]:
    """Scores between their bounds, and the lowest one that each layer keeps."""
    joined, there = _joined(scores), _joined([_there(level) for level in levels])
    known = joined[there & np.isfinite(joined)]
    bounds = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    cutoffs = []
    for layer in range(len(levels[0].kept)):
        kept = joined[_joined([level.kept[layer] for level in levels])]
        cutoffs.append(_short(kept.min()) if len(kept) else None)
    quantized = pack.add(quantize(np.where(there, joined, bounds[0]), bounds))
    return {"values": quantized, "bounds": [_short(x) for x in bounds], "lowest": cutoffs}


def _short(number: float) -> float:
    """A number with as many digits as single precision has."""
    return float(f"{number:.7g}")


def _attention_data(
    attention: Attention, output: DetectorOutput, shown: int, pack: Pack
) -> dict[str, Any]:
    """Attention of the detections that are shown and that it was recorded for."""
    weights = attention.weights[:shown].cpu()
    if attention.points is None:
        largest = weights.amax(1, keepdim=True).clamp(min=1e-12)
        cells = _cells(weights / largest, output)
        return {"kind": "map", "count": len(weights), "values": pack.add(quantize(cells, (0, 1)))}
    points = (attention.points[:shown].cpu() * _POINT_UNITS).round()
    _, heads, levels, samples = weights.shape
    return {
        "kind": "points",
        "count": len(weights),
        "heads": heads,
        "levels": levels,
        "samples": samples,
        "units": _POINT_UNITS,
        "points": pack.add(points.nan_to_num().clamp(-32768, 32767).to(torch.int16).numpy()),
        "weights": pack.add((weights * 65535).round().numpy().astype(np.uint16)),
    }


def _cells(maps: torch.Tensor, output: DetectorOutput) -> np.ndarray:
    """Maps (n, N) over the tokens as maps over the cells of the image, (n, cells)."""
    features = output.features
    cells = features.to_cells(maps.to(features.tokens.device).T[None])[0]
    sizes = [h * w for h, w in features.spatial_shapes]
    levels = []
    for index, level in enumerate(cells.split(sizes)):
        rows, columns = features.level_sizes[0][index]
        inside = level.unflatten(0, features.spatial_shapes[index])[:rows, :columns]
        levels.append(inside.flatten(0, 1))
    return torch.cat(levels).T.float().cpu().numpy()

"""Drawings of detections and kept tokens, made only with Pillow.

Sizes are (height, width), as everywhere in the package; Pillow's own order is (width, height).
"""

from sparsedet.visualization.boxes import class_color, draw_detections, draw_targets
from sparsedet.visualization.figures import layer_figure, level_figure, token_figure
from sparsedet.visualization.layout import stack
from sparsedet.visualization.tiles import draw_tile_scores, draw_tiles
from sparsedet.visualization.tokens import (
    LevelTokens,
    cells_to_pixels,
    draw_kept_tokens,
    draw_layer_tokens,
    draw_scores,
    token_levels,
)
from sparsedet.visualization.watched import WatchedPictures

__all__ = [
    "LevelTokens",
    "WatchedPictures",
    "cells_to_pixels",
    "class_color",
    "draw_detections",
    "draw_kept_tokens",
    "draw_layer_tokens",
    "draw_scores",
    "draw_targets",
    "draw_tile_scores",
    "draw_tiles",
    "layer_figure",
    "level_figure",
    "stack",
    "token_figure",
    "token_levels",
]

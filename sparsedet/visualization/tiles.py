"""Draw the tiles that a detector chose, and the scores of all tiles."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from sparsedet.structures import Instances
from sparsedet.visualization.ink import Color, ramp, to_picture

LOOKED: Color = (255, 255, 255)

DIM = 0.35
_LINE = 2.0  # width of the outline for a long side of 1000 pixels


def draw_tiles(picture: Image.Image, tiles: Instances, *, dim: float = DIM) -> Image.Image:
    """Draw an outline around the chosen tiles of a picture, and dim the rest.

    Args:
        picture: the image, at any scale.
        tiles: the model's output ``tiles``: ``boxes``, row by row, and ``looked``; their
            ``image_size`` is that of the unscaled image.
        dim: brightness outside of the chosen tiles, in [0, 1]; 1 = only the outline.
    """
    looked = _spread(255 * tiles.looked.cpu().numpy().astype(np.uint8), tiles, picture)
    shown = picture.convert("RGB")
    dark = shown.point([round(dim * value) for value in range(256)] * 3)
    shown = Image.composite(shown, dark, Image.fromarray(looked))
    _outline(shown, tiles)
    return shown


def draw_tile_scores(
    picture: Image.Image, tiles: Instances, bounds: tuple[float, float]
) -> Image.Image:
    """Draw the score of every tile as a color over the gray picture, and outline chosen tiles.

    Args:
        picture: the image, at any scale.
        tiles: as in ``draw_tiles``, with ``scores``.
        bounds: the scores of the darkest and the brightest color.
    """
    gray = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    span = max(bounds[1] - bounds[0], 1e-6)
    scores = tiles.scores.float().cpu().numpy()
    shares = _spread(np.clip((scores - bounds[0]) / span, 0, 1), tiles, picture)
    shown = to_picture(0.4 * gray + 0.6 * ramp(shares))
    _outline(shown, tiles)
    return shown


def _grid(tiles: Instances) -> tuple[np.ndarray, np.ndarray]:
    """Start of each row and column of tiles, and the end of the last ones."""
    boxes = tiles.boxes.tensor.double().cpu().numpy()
    return tuple(np.append(np.unique(boxes[:, a]), boxes[:, a + 2].max()) for a in (1, 0))  # pyright: ignore[reportReturnType]


def _spread(values: np.ndarray, tiles: Instances, picture: Image.Image) -> np.ndarray:
    """For every pixel of a picture, the value of its tile."""
    places = []
    lengths = zip(_grid(tiles), tiles.image_size, (picture.height, picture.width), strict=True)
    for edges, own, length in lengths:
        centers = (np.arange(length) + 0.5) * own / length
        place = np.searchsorted(edges, centers, side="right") - 1
        places.append(place.clip(0, len(edges) - 2))
    rows, columns = (len(edges) - 1 for edges in _grid(tiles))
    return values.reshape(rows, columns)[places[0][:, None], places[1]]


def _outline(picture: Image.Image, tiles: Instances) -> None:
    """Draw lines between chosen and other tiles, and along the border of the picture."""
    draw, width = ImageDraw.Draw(picture), max(1, round(_LINE * max(picture.size) / 1000))
    y, x = (
        np.minimum(np.round(edges * length / own), length - 1).tolist()
        for edges, length, own in zip(
            _grid(tiles), (picture.height, picture.width), tiles.image_size, strict=True
        )
    )
    looked = tiles.looked.cpu().numpy().reshape(len(y) - 1, len(x) - 1)
    around = np.pad(looked, 1)
    for row, column in np.argwhere(around[:-1, 1:-1] != around[1:, 1:-1]):
        draw.line((x[column], y[row], x[column + 1], y[row]), fill=LOOKED, width=width)
    for row, column in np.argwhere(around[1:-1, :-1] != around[1:-1, 1:]):
        draw.line((x[column], y[row], x[column], y[row + 1]), fill=LOOKED, width=width)

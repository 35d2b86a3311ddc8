"""Lay out panels with titles on a page, with a legend of their colors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from sparsedet.visualization.ink import INK, PAPER, TEXT, Color, font, ink_on, text_width

GAP, LINE = 12, 18
_SWATCH = 2 * TEXT

Panel = tuple[tuple[str, str], Image.Image]


@dataclass(frozen=True)
class Swatch:
    """A color in a legend: a box around its text, or a dot if there is no text."""

    text: str
    color: Color

    @property
    def width(self) -> int:
        """Width on the line in pixels."""
        return _SWATCH if self.text else TEXT

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
        """Draw it at (x, y)."""
        if not self.text:
            draw.ellipse((x, y + 3, x + TEXT - 6, y + TEXT - 3), fill=self.color)
            return
        draw.rectangle((x, y - 1, x + _SWATCH - 3, y + LINE - 2), fill=self.color)
        draw.text((x + TEXT // 2, y), self.text, font=font(), fill=ink_on(self.color))


Legend = Sequence[str | Swatch]


def grid(panels: Sequence[Panel], columns: int) -> Image.Image:
    """A grid of pictures of one size, each below its two lines of text."""
    first = panels[0][1]
    width = max([first.width, *(text_width(line) for title, _ in panels for line in title)])
    height = 2 * LINE + first.height
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (title, picture) in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = column * (width + GAP), row * (height + GAP)
        for line, text in enumerate(title):
            draw.text((x, y + line * LINE), text, font=font(), fill=INK)
        page.paste(picture, (x, y + 2 * LINE))
    return page


def page(head: str, parts: Sequence[Image.Image], legend: Legend) -> Image.Image:
    """Parts side by side, with a line of text above and the legend below."""
    width = sum(part.width for part in parts) + 2 * GAP * (len(parts) - 1)
    width = max(width, _legend_width(legend), text_width(head)) + 2 * GAP
    top = GAP + LINE + GAP
    whole = Image.new("RGB", (width, 2 * top + max(part.height for part in parts)), PAPER)
    draw = ImageDraw.Draw(whole)
    draw.text((GAP, GAP), head, font=font(), fill=INK)
    x = GAP
    for part in parts:
        whole.paste(part, (x, top))
        x += part.width + 2 * GAP
    x, y = GAP, whole.height - GAP - LINE
    for item in legend:
        if isinstance(item, Swatch):
            item.draw(draw, x, y)
        else:
            draw.text((x, y), item, font=font(), fill=INK)
        x += _item_width(item)
    return whole


def _legend_width(legend: Legend) -> int:
    return sum(map(_item_width, legend))


def _item_width(item: str | Swatch) -> int:
    return item.width if isinstance(item, Swatch) else text_width(item) + GAP // 2


def stack(figures: Sequence[Image.Image], *, gap: int = 0) -> Image.Image:
    """Figures below each other, such as those of several models for one image.

    Args:
        figures: at least one.
        gap: pixels between them.
    """
    width = max(figure.width for figure in figures)
    height = sum(figure.height for figure in figures) + gap * (len(figures) - 1)
    whole = Image.new("RGB", (width, height), PAPER)
    top = 0
    for figure in figures:
        whole.paste(figure, (0, top))
        top += figure.height + gap
    return whole

"""What a report is made of: sections of tables, charts, pictures and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "FORM_ERRORS",
    "Bar",
    "Box",
    "Cell",
    "Chart",
    "Commands",
    "Line",
    "Note",
    "Pictures",
    "Section",
    "Shown",
    "Table",
    "number",
    "other_form",
    "share",
]

NONE = "-"
FORM_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What is raised where a file does not have the form that this version writes."""
_WIDE = 7  # columns of a table that fits beside another one


def other_form(error: Exception) -> str:
    """A sentence about a file that does not have the form that this version writes."""
    return (
        f"A file does not have the form that this version writes ({type(error).__name__}: {error})."
    )


def number(value: object, digits: int = 1) -> str:
    """A number as text; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE
    return f"{value:.{digits}f}"


def share(value: object, digits: int = 0) -> str:
    """A share in [0, 1] in percent; a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE
    return f"{100 * value:.{digits}f} %"


@dataclass(frozen=True)
class Bar:
    """A cell with a bar.

    Attributes:
        text: what stands in it.
        share: length of the bar, in [0, 1].
    """

    text: str
    share: float


@dataclass(frozen=True)
class Box:
    """A cell of a heat map.

    Attributes:
        text: what stands in it.
        share: strength of its color, in [0, 1].
        right: whether it is as it should be.
    """

    text: str
    share: float
    right: bool


Cell = str | Bar | Box


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        title: of the table.
        head: names of the columns.
        rows: cells.
        words: whether the cells are words rather than numbers.
        note: below the table.
        folded: whether it is opened by a click.
    """

    kind: ClassVar[str] = "table"
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: bool = False
    note: str = ""
    folded: bool = False

    @property
    def is_wide(self) -> bool:
        """Whether it takes the whole width of the page."""
        return self.words or len(self.head) > _WIDE or isinstance(self.rows[0][1], Box)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: in the legend.
        points: x and y.
        color: number of its color, from 0.
        dots: whether each point is marked.
        dashed: whether it is dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis.

    Attributes:
        title: of the chart.
        x: what its horizontal axis is.
        y: what its vertical axis is.
        lines: to be drawn.
        numbers: the same in a table.
        log: whether the vertical axis is logarithmic.
        from_zero: whether the horizontal axis begins at 0.
        note: below the chart.
        svg: the drawing; empty where nothing can draw it.
    """

    kind: ClassVar[str] = "chart"
    title: str
    x: str
    y: str
    lines: Sequence[Line]
    numbers: Table
    log: bool = False
    from_zero: bool = False
    note: str = ""
    svg: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture with boxes.

    Attributes:
        title: of the picture.
        fault: the kind of box that it is shown for.
        image: a data URI.
        size: width and height of the file.
        boxes: kind, x, y, width, height and words of each box.
        words: what went wrong.
    """

    title: str
    fault: str
    image: str
    size: tuple[float, float]
    boxes: Sequence[tuple[str, float, float, float, float, str]]
    words: str


@dataclass(frozen=True)
class Pictures:
    """Pictures beside each other.

    Attributes:
        title: of them.
        pictures: to be shown.
        legend: whether the colors of boxes are explained above.
    """

    kind: ClassVar[str] = "pictures"
    title: str
    pictures: Sequence[Shown]
    legend: bool = False


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, each with what it does."""

    kind: ClassVar[str] = "commands"
    title: str
    lines: Sequence[tuple[str, str]]


Block = Table | Chart | Pictures | Note | Commands


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        id: its anchor.
        title: its heading.
        blocks: what is in it.
        files: that its numbers come from; what is said of those that are missing stands in it.
    """

    id: str
    title: str
    blocks: Sequence[Block]
    files: Sequence[str] = ()

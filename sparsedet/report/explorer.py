"""The token explorer: which tokens detectors keep, why, and what that costs, in one HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from sparsedet.data import DatasetError, StorageError
from sparsedet.modeling import TokenSparseDetector
from sparsedet.predictor import Picture, PictureSource, Predictor
from sparsedet.predictor.pictures import is_picture
from sparsedet.report.looking import ExplainedModel, missing
from sparsedet.report.packing import data_uri
from sparsedet.report.page import readable, render, write_page
from sparsedet.report.picture_data import view_data
from sparsedet.report.stage_costs import StageCosts
from sparsedet.visualization import class_color

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Keep ratios that a page can show, beside a model's own one and 1."""

_PICTURE_SIDE, _THUMBNAIL_SIDE = 1280, 112  # long sides, in pixels
_MOST_ATTENTION = 25  # detections of which the attention is recorded
_SCRIPTS = ("words", "decode", "state", "colors", "paint", "panel", "details", "controls", "start")
Problem = DatasetError | StorageError


@dataclass(frozen=True)
class Explorer:
    """What was written.

    Attributes:
        path: the HTML file.
        pictures: number of pictures in it.
        num_bytes: its size.
    """

    path: Path
    pictures: int
    num_bytes: int


def explain(
    models: Predictor | Mapping[str, Predictor],
    pictures: PictureSource | Iterable[PictureSource],
    path: str | PathLike[str],
    *,
    ratios: Sequence[float] = RATIOS,
    score_threshold: float = 0.3,
    repetitions: int = 3,
    on_error: Callable[[Problem], None] | None = None,
) -> Explorer:
    """Write the token explorer of some pictures: one HTML file that opens from disk.

    Args:
        models: a predictor, or several by the names that they get on the page.
        pictures: paths or pictures, or an iterable of these.
        path: the HTML file; an existing one is replaced.
        ratios: keep ratios to compute, in (0, 1]; a model's own and 1 are added.
        score_threshold: detections with lower scores are hidden at first, in [0, 1].
        repetitions: timed passes for each input size and ratio; 0 = no milliseconds.
        on_error: called with the error of a file, which is then left out. None = raise it.

    Raises:
        DatasetError: a picture cannot be read, or none can.
        StorageError: a file cannot be reached.
        ValueError: a value outside of its range, or no model.
    """
    named = {"": models} if isinstance(models, Predictor) else dict(models)
    if not named:
        raise ValueError("explain.models must hold at least one predictor, got none.")
    _check(ratios, score_threshold, repetitions)
    explained = [ExplainedModel(name, predictor) for name, predictor in named.items()]
    sources: Any = [pictures] if is_picture(pictures) else pictures
    target, writer = Path(path), _Writer(explained, ratios, score_threshold, repetitions)
    write_page(
        target,
        title="Token explorer",
        body=render("explorer/body.html", {}),
        styles=["explorer/explorer.css"],
        scripts=[f"explorer/{name}.js" for name in _SCRIPTS],
        data=writer.blocks(sources, on_error),
    )
    return Explorer(target, len(writer.entries), target.stat().st_size)


def _check(ratios: Sequence[float], score_threshold: float, repetitions: int) -> None:
    wrong = [each for each in ratios if not 0 < each <= 1]
    if wrong:
        raise ValueError(f"explain.ratios must be in (0, 1], got {wrong[0]!r}.")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"explain.score_threshold must be in [0, 1], got {score_threshold!r}.")
    if repetitions < 0:
        raise ValueError(f"explain.repetitions must be at least 0, got {repetitions}.")


class _Writer:
    """Makes the blocks of data of a page, picture by picture."""

    def __init__(
        self,
        models: Sequence[ExplainedModel],
        ratios: Sequence[float],
        score_threshold: float,
        repetitions: int,
    ) -> None:
        own = [model.own_ratio for model in models]
        asked = sorted({*ratios, *(each for each in own if each is not None)})
        self._models = [(model, model.ratios(asked)) for model in models]
        self._costs = [StageCosts(model, repetitions) for model in models]
        self._threshold = score_threshold
        self.entries: list[dict[str, Any]] = []

    def blocks(
        self, sources: Iterable[PictureSource], on_error: Callable[[Problem], None] | None
    ) -> Iterator[tuple[str, Any]]:
        for source in sources:
            try:
                read = [model.predictor.read(source) for model, _ in self._models]
            except (DatasetError, StorageError) as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            yield f"picture-{len(self.entries)}", self._picture(read)
        if not self.entries:
            raise DatasetError("none of the pictures can be read, so there is nothing to explain.")
        yield "explorer", self._facts()

    def _picture(self, read: Sequence[Picture]) -> dict[str, Any]:
        """All of a picture; models may read it at sizes of their own."""
        sharpest = max(read, key=lambda each: each.pixels.shape[1])
        shown, (height, width) = sharpest.to_pillow(), sharpest.size
        path = f"picture {len(self.entries) + 1}" if read[0].path is None else read[0].path
        words = readable(path)
        thumbnail = data_uri(shown, _THUMBNAIL_SIDE)
        self.entries.append({"path": words, "thumbnail": thumbnail})
        views = []
        for (model, ratios), costs, picture in zip(self._models, self._costs, read, strict=True):
            looks = [model.look(picture, ratio, _MOST_ATTENTION) for ratio in ratios]
            views.append(view_data(looks, [costs(picture, x) for x in ratios], picture))
        return {"size": [height, width], "image": data_uri(shown, _PICTURE_SIDE), "views": views}

    def _facts(self) -> dict[str, Any]:
        names = _shortest_names([entry["path"] for entry in self.entries])
        return {
            "pictures": [
                {**entry, "name": name} for entry, name in zip(self.entries, names, strict=True)
            ],
            "threshold": self._threshold,
            "models": [
                {
                    "name": model.name or type(model.model).__name__,
                    "parts": _parts(model),
                    "classes": list(model.predictor.class_names),
                    "colors": [_hex(i) for i in range(len(model.predictor.class_names))],
                    "ratios": ratios,
                    "ownRatio": model.own_ratio,
                    "missing": missing(model),
                    "protocol": costs.protocol,
                }
                for (model, ratios), costs in zip(self._models, self._costs, strict=True)
            ],
        }


def _shortest_names(paths: Sequence[str]) -> list[str]:
    """The last parts of each path, as few as tell it from the other paths."""
    parts = [Path(path).parts for path in paths]
    most = max(map(len, parts))
    ends = [["/".join(each[-count:]) for count in range(1, most + 1)] for each in parts]
    shared = [Counter(column) for column in zip(*ends, strict=True)]
    return [
        next((end for end, count in zip(each, shared, strict=True) if count[end] == 1), each[0])
        for each in ends
    ]


def _hex(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_color(label))


def _parts(model: ExplainedModel) -> str:
    """The parts of a detector that matter for its tokens, in words."""
    detector = model.model
    if not isinstance(detector, TokenSparseDetector):
        return type(detector).__name__
    names = [
        type(each).__name__
        for each in (
            detector.regions,
            detector.scorer,
            detector.selector,
            detector.encoder,
            detector.query_initializer,
            detector.decoder,
        )
        if each is not None
    ]
    return ", ".join(names)

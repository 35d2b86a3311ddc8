"""The folder of a training run: what is in it, and what is not there yet."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsedet.files import read_object, read_rows

__all__ = [
    "COSTS",
    "DATA",
    "RUN",
    "RunError",
    "RunFolder",
    "find_runs",
    "is_run",
    "read_run",
]

COSTS, DATA, RUN = "analysis.json", "data.json", "run.json"
_LOG, _RESULTS, _EVALUATED = "metrics.json", "results.json", "eval_results.json"
_MARKS = (_LOG, _RESULTS, _EVALUATED, RUN)
_OF_EVALUATION = ("curves.json", "confusion.json", "worst.json")
_DEPTH = 3  # folders below one that is named, in which runs are looked for
_PREFIX = "eval/"

Rows = Sequence[Mapping[str, Any]]


class RunError(ValueError):
    """A folder is none of a training run."""


@dataclass(frozen=True)
class RunFolder:
    """What a training run left.

    Attributes:
        path: the folder.
        name: what the run is called beside others.
        rows: of its log, each with `iteration`.
        evaluations: rows of the log with results, without their prefix.
        config: the text of `config.yaml`; None without.
        files: the content of each JSON file that is there, by name.
        lacking: what is not there, each file with a sentence that says how to get it.
    """

    path: Path
    name: str
    rows: Rows
    evaluations: Rows
    config: str | None
    files: Mapping[str, Mapping[str, Any]]
    lacking: Mapping[str, str] = field(default_factory=dict)

    def file(self, name: str) -> Mapping[str, Any]:
        """The content of a JSON file; empty where it is not there."""
        return self.files.get(name, {})

    @property
    def place(self) -> str:
        """The folder as a shell takes it."""
        return shlex.quote(str(self.path))

    @property
    def results(self) -> Mapping[str, Any]:
        """Of the end of the run, or of a later evaluation where there was no end."""
        return self.file(_RESULTS) or self.file(_EVALUATED)

    @property
    def about(self) -> Mapping[str, Any]:
        """Where the run comes from: of its start, or else of its end."""
        return self.file(RUN) or self.results

    @property
    def starts(self) -> Rows:
        """The command of the run and those that resumed it, as far as they are known."""
        own = [{"config": self.about["config"], **self.about}] if self.about.get("config") else []
        return self.file(RUN).get("starts") or own

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Of the last evaluation, by group; from the log where the run has not ended."""
        if found := self.results.get("metrics"):
            return found
        groups: dict[str, Any] = {}
        for name, value in (self.evaluations[-1] if self.evaluations else {}).items():
            group, _, rest = name.partition("/")
            if rest:
                groups.setdefault(group, {})[rest] = value
            else:
                groups[name] = value
        return groups

    def metric(self, name: str) -> float | None:
        """A number of `metrics`, such as `bbox/AP`; None where there is none."""
        value: Any = self.metrics
        for part in name.split("/", 1):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value if isinstance(value, (int, float)) else None

    @property
    def iteration(self) -> int:
        """The last iteration that the log has."""
        return max((row["iteration"] for row in (*self.rows, *self.evaluations)), default=0)

    @property
    def max_iter(self) -> int | None:
        """Iterations of the whole run; None where that is not known."""
        if known := self.file(RUN).get("max_iter"):
            return known
        train = re.search(r"^train:\n((?:  .*\n?)*)", self.config or "", re.M)
        settings = (
            dict(re.findall(r"^  (max_iter|epochs): ([\d.]+)$", train[1], re.M)) if train else {}
        )
        row = self.rows[-1] if self.rows else {}
        if "max_iter" in settings:
            return int(settings["max_iter"])
        if "epochs" not in settings or not row.get("epoch"):
            return None
        return round(float(settings["epochs"]) * row["iteration"] / row["epoch"])

    @property
    def has_ended(self) -> bool:
        """Whether the run came to its end, and none has resumed it since."""
        done = self.file(_RESULTS).get("iterations")
        return done is not None and done >= self.iteration

    @property
    def is_evaluated_since(self) -> bool:
        """Whether `sparsedet eval` has replaced the files of the run's own evaluation."""
        both = [self.path / name for name in (_EVALUATED, _RESULTS)]
        if not all(path.is_file() for path in both):
            return False
        later, own = (path.stat().st_mtime for path in both)
        return later > own


def find_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The folders of runs that are named, or that lie in the folders that are named, each once.

    Raises:
        RunError: a path is no folder, or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for each in map(Path, folders):
        if not each.is_dir():
            what = "is a file" if each.exists() else "does not exist"
            raise RunError(f"{each} {what}. Name the folder of a run: its train.output_dir.")
        runs = [each] if is_run(each) else sorted(_runs_below(each, _DEPTH))
        if not runs:
            raise RunError(
                f"{each} has no {' and no '.join(_MARKS)}, and neither has a folder in it, so "
                "there is no run to report. Name the train.output_dir of a run that has begun."
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def is_run(folder: Path) -> bool:
    """Whether a folder has a file of a training run or of an evaluation."""
    return any((folder / name).is_file() for name in _MARKS)


def _runs_below(folder: Path, depth: int) -> Iterable[Path]:
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            if is_run(each):
                yield each
            elif depth > 1:
                yield from _runs_below(each, depth - 1)


def read_run(folder: Path, name: str) -> RunFolder:
    """Read what is in the folder of a run; nothing in it is called.

    Args:
        folder: see `find_runs`.
        name: that the run gets.
    """
    files: dict[str, Mapping[str, Any]] = {}
    lacking: dict[str, str] = {}
    place = shlex.quote(str(folder))
    weights = next((n for n in ("model_best.pth", "model_final.pth") if (folder / n).is_file()), "")
    for file, (says, mend) in _FILES.items():
        try:
            content = read_object(folder / file)
        except ValueError as error:
            lacking[file] = f"{error} {mend(place, weights)}".strip()
            continue
        if content is not None:
            files[file] = content
        elif says:
            lacking[file] = f"{file} is missing: {says} {mend(place, weights)}".strip()
    if set(_OF_EVALUATION) <= set(lacking) and not any(map(files.get, (_RESULTS, _EVALUATED))):
        lacking = {name: text for name, text in lacking.items() if name not in _OF_EVALUATION}
        lacking[_OF_EVALUATION[0]] = (
            f"{', '.join(_OF_EVALUATION)} are missing: no evaluation has been written yet."
        )
    rows = [row for row in read_rows(folder / _LOG) if isinstance(row.get("iteration"), int)]
    if not rows:
        lacking[_LOG] = f"{_LOG} is missing or empty: there are no losses and no rates."
    text = folder / "config.yaml"
    config = text.read_text("utf-8", "replace") if text.is_file() else None
    if config is None:
        lacking["config.yaml"] = "config.yaml is missing: the settings of the run are not known."
    training = [row for row in rows if not _is_evaluation(row)]
    evaluations = [_plain(row) for row in rows if _is_evaluation(row)]
    return RunFolder(folder, name, training, evaluations, config, files, lacking)


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    return any(key.startswith(_PREFIX) for key in row)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(_PREFIX): value for key, value in row.items()}


Mend = Callable[[str, str], str]


def _nothing(folder: str, weights: str) -> str:
    return ""


def _evaluate(folder: str, weights: str) -> str:
    if not weights:
        return ""
    return f"Run: sparsedet eval {folder}/{weights} train.output_dir={folder}"


# what it means that a file is missing, and how to get it; "" = it is not missed
_FILES: Mapping[str, tuple[str, Mend]] = {
    _RESULTS: (
        "the run has not ended.",
        lambda folder, _: f"To resume it, run: sparsedet train {folder}/config.yaml --resume",
    ),
    RUN: ("the run was started by a version that did not write it.", _nothing),
    "curves.json": ("there is no evaluation yet, or one without boxes.", _evaluate),
    "confusion.json": ("there is no evaluation yet, or one without boxes.", _evaluate),
    "worst.json": ("the evaluation was made by a version that did not write it.", _evaluate),
    COSTS: (
        "the cost of the model has not been counted.",
        lambda folder, _: f"Run: sparsedet analyze {folder}/config.yaml --output {folder}/{COSTS}",
    ),
    DATA: (
        "the run was started by a version that did not write it.",
        lambda folder, _: f"Run: sparsedet check-data {folder}/config.yaml --json {folder}/{DATA}",
    ),
    _EVALUATED: ("", _nothing),
    "sweep/sweep.json": ("", _nothing),
}

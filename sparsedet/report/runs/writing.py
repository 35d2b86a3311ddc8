"""The page: sections of what the folders of runs hold, and what is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sparsedet import __version__
from sparsedet.report.page import readable, render, write_page
from sparsedet.report.runs.accuracy import accuracy
from sparsedet.report.runs.charts import COLORS, can_draw, draw
from sparsedet.report.runs.folder import RunFolder, find_runs, read_run
from sparsedet.report.runs.mistakes import mistakes
from sparsedet.report.runs.parts import FORM_ERRORS, Chart, Note, Section, other_form
from sparsedet.report.runs.progress import progress
from sparsedet.report.runs.settings import commands, data, environment, settings
from sparsedet.report.runs.summary import comparison, summary
from sparsedet.report.runs.tokens import tokens

__all__ = ["NAME", "Report", "write_report"]

NAME = "report.html"
"""What the page is called in the folder of a run."""

_SECTIONS: Mapping[str, Callable[[Sequence[RunFolder]], Section]] = {
    "Accuracy": accuracy,
    "Mistakes": mistakes,
    "Losses, rates and time": progress,
    "Tokens and cost": tokens,
    "Data": data,
    "Settings": settings,
    "Environment": environment,
    "Commands": commands,
}
_ANY = "DIR"  # stands for the folder of each run in a sentence about several
_NO_CHARTS = (
    "Charts are tables here, because matplotlib is not installed. Run: pip install "
    "'sparsedet[plot]', and write this page again."
)


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the HTML file.
        runs: number of runs in it.
        num_bytes: its size.
    """

    path: Path
    runs: int
    num_bytes: int


def write_report(
    folders: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str] | None = None
) -> Report:
    """Write the report of one run, or of several side by side.

    The numbers come from the files that training and evaluation have written. The page names what
    is missing, and the command that writes it.

    Args:
        folders: folders of runs, or folders with runs in them.
        path: the HTML file; an existing one is replaced. None = `report.html` in the folder of the
            run, or in the folder that contains all runs.

    Raises:
        RunError: a folder does not exist, or has no run in it.
        OSError: the file cannot be written.
    """
    found = find_runs(folders)
    runs = [read_run(each, name) for each, name in zip(found, _names(found), strict=True)]
    target = Path(_shared(found) if path is None else path)
    sections = [_section(title, make, runs) for title, make in _SECTIONS.items()]
    several = len(runs) > 1
    content = {
        "summaries": [summary(run) for run in runs],
        "comparison": comparison(runs) if several else None,
        "sections": [(each, _lacking(each, runs)) for each in sections],
        "links": [_link(run, target) for run in runs] if several else [],
        "notes": [] if can_draw() else [_NO_CHARTS],
        "colors": COLORS,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "version": __version__,
    }
    write_page(
        target,
        title=f"Report of {len(runs)} runs" if several else f"Report of {readable(runs[0].name)}",
        subtitle="" if several else readable(runs[0].path),
        body=render("run/body.html", content),
        styles=["run/run.css"],
    )
    return Report(target, len(runs), target.stat().st_size)


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells the folders from each other."""
    if len(folders) == 1:
        return [readable(folders[0].resolve().name)]
    whole = [each.resolve() for each in folders]
    shared = Path(os.path.commonpath(whole))
    return [readable(each.relative_to(shared)) if each != shared else each.name for each in whole]


def _shared(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / NAME
    return Path(os.path.commonpath([each.resolve() for each in folders])) / NAME


def _section(
    title: str, make: Callable[[Sequence[RunFolder]], Section], runs: Sequence[RunFolder]
) -> Section:
    """A section; runs whose files have another form are left out of it, and it says so."""
    try:
        return _drawn(make(runs))
    except FORM_ERRORS as error:
        text = f"This section cannot be shown. {other_form(error)}"
    faults = [_fault(make, run) for run in runs]
    sound = [_emptied(run) if why else run for run, why in zip(runs, faults, strict=True)]
    try:
        made = None if all(faults) else _drawn(make(sound))
    except FORM_ERRORS:
        made = None
    if made is None:
        return Section(title.split()[0].strip(",").lower(), title, [Note(text)])
    left = [
        Note(f"{run.name} is left out here. {why}")
        for run, why in zip(runs, faults, strict=True)
        if why
    ]
    return replace(made, blocks=[*left, *made.blocks])


def _emptied(run: RunFolder) -> RunFolder:
    """The run without content; it keeps its name, and so its color."""
    return replace(run, rows=(), evaluations=(), config=None, files={})


def _drawn(section: Section) -> Section:
    """The section with its charts drawn, if they can be."""
    if not can_draw():
        return section
    blocks = [replace(b, svg=draw(b)) if isinstance(b, Chart) else b for b in section.blocks]
    return replace(section, blocks=blocks)


def _fault(make: Callable[[Sequence[RunFolder]], Section], run: RunFolder) -> str:
    """Why a run alone cannot be in a section; empty where it can."""
    try:
        _drawn(make([run]))
    except FORM_ERRORS as error:
        return other_form(error)
    return ""


def _lacking(section: Section, runs: Sequence[RunFolder]) -> list[str]:
    """What is said of the files that a section lacks; the same sentence of many runs once."""
    found = []
    for file in section.files:
        alike: dict[str, list[RunFolder]] = {}
        for run in runs:
            if file in run.lacking:
                alike.setdefault(run.lacking[file].replace(run.place, _ANY), []).append(run)
        for text, lacking in alike.items():
            names = ", ".join(run.name for run in lacking)
            if len(lacking) > 2:
                found.append(f"{names}: {text}")
            else:
                prefix = len(runs) > 1
                found += [
                    f"{r.name}: {r.lacking[file]}" if prefix else r.lacking[file] for r in lacking
                ]
    return found


def _link(run: RunFolder, target: Path) -> dict[str, Any]:
    """The report of a run, if it has one."""
    own = run.path / NAME
    if not own.is_file() or own.resolve() == target.resolve():
        return {"name": run.name, "href": ""}
    return {"name": run.name, "href": os.path.relpath(own.resolve(), target.resolve().parent)}

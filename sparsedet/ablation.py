"""A grid of training runs with several seeds: the plan, the finished runs, and the table."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sparsedet.config import ConfigError
from sparsedet.config.overrides import Override
from sparsedet.files import atomic_write, write_json

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_RESERVED = {"train.seed": "--seeds", "train.output_dir": "--output"}
_OPENING, _CLOSING = "[{(", "]})"
_LONGEST = 80
_STOPPED = (129, 130, 138, 143)
"""Exit codes of runs that a user or a job scheduler stopped; 137 means out of memory."""

Grid = Mapping[str, Sequence[str]]
"""The values of each key, written as in overrides."""


@dataclass(frozen=True)
class Run:
    """One training run of a grid.

    Attributes:
        point: the value of each key of the grid.
        seed: ``train.seed``.
        folder: ``train.output_dir``.
        overrides: all overrides of the config.
    """

    point: Mapping[str, str]
    seed: int
    folder: Path
    overrides: tuple[str, ...]


def read_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """Read ``key=a,b,c``; a comma inside brackets or quotes belongs to a value.

    Raises:
        ConfigError: a word has no values, or a key or a value is given twice.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = _split(text)
        if not equals or not key or "" in values:
            raise ConfigError(f"--grid must be key=value,value,..., got {word!r}.")
        name = _bare(key)
        if name in _RESERVED:
            raise ConfigError(f"--grid must not set {name}. Use {_RESERVED[name]}.")
        if name in map(_bare, grid):
            raise ConfigError(f"--grid has {name} twice. Give all of its values in one word.")
        _check_different(key, values)
        grid[key] = values
    return grid


def _bare(key: str) -> str:
    """The key without the signs that add it."""
    return key.strip().lstrip("+")


def _check_different(key: str, values: Sequence[str]) -> None:
    """Check that no two values are the same one, however they are written."""
    read = [(value, Override.parse(f"{key}={value}").value) for value in values]
    for (first, a), (second, b) in itertools.combinations(read, 2):
        if a == b and isinstance(a, bool) == isinstance(b, bool):
            also = "" if first == second else f", the second time as {second}"
            raise ConfigError(f"--grid has {key}={first} twice{also}. Leave one out.")


def _split(text: str) -> list[str]:
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        else:
            depth += (sign in _OPENING) - (sign in _CLOSING)
        if sign == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += sign
    return [value.strip() for value in values]


def plan(grid: Grid, seeds: int, output: Path, overrides: Sequence[str] = ()) -> list[Run]:
    """All runs of a grid: every combination of its values with seeds 0 to ``seeds - 1``.

    Args:
        grid: see :func:`read_grid`.
        seeds: number of seeds.
        output: the folder that gets a folder for each run.
        overrides: overrides of the config for all runs.

    Raises:
        ConfigError: there is no seed, or the grid sets one of the overrides.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}.")
    for word in overrides:
        key = _bare(word.partition("=")[0])
        if key in _RESERVED or key in map(_bare, grid):
            option = _RESERVED.get(key, "--grid")
            raise ConfigError(f"{key} is given as an override. {option} sets it in every run.")
    names = short_names(grid)
    runs = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        changes = [f"{key}={value}" for key, value in point.items()]
        folder = output / _folder([f"{names[key]}={value}" for key, value in point.items()])
        for seed in range(seeds):
            own = folder / f"seed{seed}"
            last = (f"train.seed={seed}", f"train.output_dir={own}")
            runs.append(Run(point, seed, own, (*overrides, *changes, *last)))
    return runs


def short_names(grid: Grid) -> dict[str, str]:
    """The shortest suffix of each key that no other key of the grid has."""
    found = {}
    for key in grid:
        parts = key.lstrip("+").split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [f".{other.lstrip('+')}" for other in grid if other != key]
        found[key] = next(
            (e for e in ends if not any(other.endswith(f".{e}") for other in others)), key
        )
    return found


def _folder(changes: Sequence[str]) -> str:
    text = ",".join(changes) or "run"
    name = re.sub(r"[^\w.,=+-]", "_", text)
    if name == text and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]  # different values may look the same
    return f"{name[:_LONGEST]}-{digest}"


def finished(run: Run, config: str) -> dict[str, Any] | None:
    """The results of a finished run, else None.

    Args:
        run: a run of :func:`plan`.
        config: name or file of its config.

    Raises:
        ConfigError: the folder has results of a run with another config or other overrides.
    """
    path = run.folder / "results.json"
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        before = results["config"], list(results["overrides"])
        _ = results["metrics"]["bbox"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not from a training run. Move the folder away.") from error
    if before != (config, list(run.overrides)):
        raise ConfigError(
            f"{run.folder} has results of `sparsedet train {before[0]} "
            f"{shlex.join(before[1])}`. Set another --output, or move the folder away."
        )
    return results


def run_missing(
    config: str,
    runs: Sequence[Run],
    train: Callable[[Run], int],
    report: Callable[[str], None] = lambda line: None,
) -> tuple[dict[int, int], int | None]:
    """Run the unfinished runs one after the other; if one fails, the others still run.

    Args:
        config: name or file of the config.
        runs: the runs of :func:`plan`.
        train: trains a run, or resumes it from its last checkpoint; returns the exit code of
            `sparsedet train`.
        report: called with a line of text for each run.

    Returns:
        The exit codes of failed runs by their index; and the exit code of a run that a signal
        stopped, after which no other was started, or None.
    """
    failed: dict[int, int] = {}
    done = [finished(run, config) is not None for run in runs]
    for index, run in enumerate(runs):
        title = f"run {index + 1} of {len(runs)}: {run.folder}"
        if done[index]:
            report(f"{title}: already finished")
            continue
        report(title)
        code = train(run)
        if code in _STOPPED:
            return failed, code
        if code:
            failed[index] = code
            report(f"{title}: failed with exit code {code}; see log.txt there")
    return failed, None


def collect(config: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each point of the grid, with the metrics of its finished seeds.

    Args:
        config: name or file of the config.
        runs: of :func:`plan`.
    """
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for run in runs:
        key = tuple(run.point.values())
        row = rows.setdefault(key, {"point": dict(run.point), "runs": []})
        results = finished(run, config)
        entry: dict[str, Any] = {"seed": run.seed, "folder": str(run.folder)}
        if results is not None:
            bbox = results["metrics"]["bbox"]
            entry |= {name: bbox.get(name) for name in METRICS}
            entry |= {"keep_ratio": results.get("keep_ratio"), "ended": results.get("ended")}
            entry["seconds_per_iteration"] = results.get("seconds_per_iteration")
        row["runs"].append(entry)
    return list(rows.values())


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Column names, then a line for each point: mean (lowest to highest) over the seeds."""
    names = short_names(dict.fromkeys(rows[0]["point"], ()))
    shown = [m for m in (*METRICS, "keep_ratio") if any(_values(row, m) for row in rows)]
    heads = ["tokens kept" if m == "keep_ratio" else m for m in shown]  # the key may be an axis
    lines = [[*names.values(), "seeds", *heads]]
    for row in rows:
        done = sum("ended" in entry for entry in row["runs"])
        cells = [_cell(_values(row, m), 3 if m == "keep_ratio" else 1) for m in shown]
        lines.append([*row["point"].values(), f"{done}/{len(row['runs'])}", *cells])
    return lines


def _values(row: Mapping[str, Any], metric: str) -> list[float]:
    return [entry[metric] for entry in row["runs"] if entry.get(metric) is not None]


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean, low, high = (f"{x:.{digits}f}" for x in (fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def write_table(output: Path, config: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `ablation.json`, with every run, and `ablation.md`, with the table."""
    write_json(output / "ablation.json", {"unit": "percent", "config": config, "rows": list(rows)})
    head, *lines = table(rows)
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (head, *lines)]
    marks = ["---"] * len(head)
    text = "\n".join(f"| {' | '.join(line)} |" for line in (escaped[0], marks, *escaped[1:]))
    with atomic_write(output / "ablation.md") as file:
        file.write(f"{text}\n".encode())


def slurm_script(command: Sequence[str], runs: Sequence[Run], output: Path, num_gpus: int) -> str:
    """A SLURM array job with a task for each run; a restarted task resumes its run.

    Args:
        command: the command of the sweep, without `--script`.
        runs: the runs of :func:`plan`.
        output: folder of the sweep, which also gets the logs.
        num_gpus: GPUs of each task.
    """
    logs = f"{output}/slurm-".replace("%", "%%") + "%A_%a.log"
    return f"""#!/bin/bash
#SBATCH --job-name={shlex.quote(output.name)}
#SBATCH --array=0-{len(runs) - 1}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task={num_gpus}
#SBATCH --output={shlex.quote(logs)}
#SBATCH --signal=USR1@120
#SBATCH --requeue
mkdir -p {shlex.quote(str(output))}
srun {shlex.join(command)} --only "$SLURM_ARRAY_TASK_ID"
"""


def torchrun_script(config: Sequence[str], runs: Sequence[Run], num_gpus: int) -> str:
    """A `torchrun` line for each run.

    Args:
        config: name or file of the config, and options of `sparsedet train` that all runs have.
        runs: the runs of :func:`plan`.
        num_gpus: processes of each run.
    """
    start = ("torchrun", "--standalone", f"--nproc-per-node={num_gpus}", "-m", "sparsedet", "train")
    lines = [shlex.join([*start, *config, "--resume=auto", *run.overrides]) for run in runs]
    return "\n".join(["#!/bin/bash", *lines, ""])

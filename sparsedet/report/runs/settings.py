"""What was trained on what: the data, the settings, the machine, the commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from sparsedet.changes import config_differences
from sparsedet.checkpoint import CheckpointError
from sparsedet.config import ConfigError, LazyConfig, find_config, packaged_configs
from sparsedet.config.files import dump_yaml
from sparsedet.config.trust import is_trusting, require_trusted
from sparsedet.loading import stored_config
from sparsedet.report.runs.folder import DATA, RUN, RunFolder
from sparsedet.report.runs.parts import (
    Block,
    Commands,
    Note,
    Section,
    Table,
    number,
    share,
)

__all__ = ["commands", "data", "environment", "settings"]

_OPEN = 25  # rows; longer tables are folded
_LONGEST = 60


# --- data ----------------------------------------------------------------------------------------


def data(runs: Sequence[RunFolder]) -> Section:
    """What the sets hold; equal ones are shown once."""
    blocks: list[Block] = []
    seen: list[Any] = []
    for run in runs:
        found = run.file(DATA)
        parts = found.get("survey") or []
        if not parts or parts in seen:
            continue
        seen.append(parts)
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        blocks += [_parts(parts, prefix), _classes(parts, prefix, folded=len(runs) > 1)]
        blocks += [Note(text) for text in found.get("misfits", [])]
        blocks += _audits(found.get("parts") or [], prefix)
    if len(runs) > 1 and len(seen) == 1 and all(run.file(DATA) for run in runs):
        blocks.insert(0, Note("All runs have the same data."))
    return Section("data", "Data", blocks, files=(DATA,))


def _parts(parts: Sequence[Mapping[str, Any]], prefix: str) -> Table:
    rows = [
        [title, *(str(part[key]) for part in parts)]
        for title, key in (
            ("pictures", "pictures"),
            ("pictures without a box", "empty"),
            ("boxes", "boxes"),
            ("ignore regions", "ignore_regions"),
            ("most boxes in a picture", "most"),
        )
    ]
    for title, key in (
        ("short side", "short_side"),
        ("long side", "long_side"),
        ("size of a box", "box_size"),
    ):
        for where, words in (("file", "in the file"), ("input", "at the model's input")):
            cells = [_spread((part[where] or {}).get(key)) for part in parts]
            rows.append([f"{title}, {words}", *cells])
    rows.append(["boxes below 8 pixels at the input", *(_small(part) for part in parts)])
    note = (
        "Sizes are the 10th, 50th and 90th percentile in pixels; that of a box is the square root "
        "of its area."
    )
    return Table(f"{prefix}Pictures and boxes", ["", *_names(parts)], rows, note=note)


def _names(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [part["name"] or "all" for part in parts]


def _spread(values: Sequence[float] | None) -> str:
    return " / ".join(f"{value:.0f}" for value in values) if values else "-"


def _small(part: Mapping[str, Any]) -> str:
    return share((part["input"] or {}).get("share_small"), 1)


def _classes(parts: Sequence[Mapping[str, Any]], prefix: str, *, folded: bool) -> Table:
    counts = [{row["class"]: row for row in part["classes"]} for part in parts]
    names = list(dict.fromkeys(name for each in counts for name in each))
    rows = [
        [name, *(str(each.get(name, {}).get(key, 0)) for each in counts for key in _COUNTED)]
        for name in names
    ]
    head = ["class", *(f"{name} {key}" for name in _names(parts) for key in _COUNTED)]
    return Table(f"{prefix}Classes", head, rows, folded=folded or len(rows) > _OPEN)


_COUNTED = ("boxes", "pictures")


def _audits(audits: Sequence[Mapping[str, Any]], prefix: str) -> list[Block]:
    """What `sparsedet check-data` found."""
    rows = [
        [each["effect"], str(each["count"]), each["fault"]]
        for audit in audits
        for each in audit["findings"]
    ]
    if not rows:
        return []
    return [
        Table(f"{prefix}Faults of the data set", ["training", "count", "fault"], rows, words=True)
    ]


# --- settings ------------------------------------------------------------------------------------


def settings(runs: Sequence[RunFolder]) -> Section:
    """Where the config of a run differs from its recipe, and from those of the others."""
    blocks: list[Block] = [_between(runs)] if len(runs) > 1 else []
    blocks += [_to_recipe(run, len(runs) > 1) for run in runs]
    return Section("settings", "Settings", blocks, files=("config.yaml",))


def _to_recipe(run: RunFolder, several: bool) -> Block:
    prefix = f"{run.name}: " if several else ""
    name = run.starts[0].get("config") if run.starts else None
    if run.config is None or not name:
        return Note(f"{prefix}The recipe is not known: run.json and results.json do not name it.")
    try:
        recipe = _recipe(str(name))
        found = config_differences(recipe, _trusted(run.config, str(run.path / "config.yaml")))
    except (ConfigError, CheckpointError, OSError) as error:
        return Note(f"{prefix}The config cannot be compared with its recipe {name}: {error}")
    found = [each for each in found if not _follows(*each[:2])]
    if not found:
        return Note(f"{prefix}The config is that of the recipe {name}, unchanged.")
    rows = [[key, _short(before), _short(now)] for key, before, now in found]
    title = f"{prefix}Changes to the recipe {name}"
    head = ["setting", "recipe", "run"]
    return Table(title, head, rows, words=True, folded=several or len(rows) > _OPEN)


def _follows(key: str, before: Any) -> bool:
    """Whether a value was filled in from the data, or is the place of the run alone."""
    filled = key in ("dataset.num_classes", "dataset.class_names") and before is None
    return filled or key == "train.output_dir"


def _recipe(name: str) -> Any:
    """The config that the run was started from, as a file would have it.

    Raises:
        ConfigError: it is not there, or is a file that would run code.
    """
    own = name not in packaged_configs()
    path = find_config(name)
    if not path.is_file():
        raise ConfigError(f"there is no file {name} here.")
    if own and path.suffix == ".py" and not is_trusting():
        raise ConfigError("a .py file is code. Add --trust-config to run it.")
    return _trusted(dump_yaml(LazyConfig.load(path)), name)


def _trusted(text: str, source: str) -> Any:
    cfg = stored_config(text, source)
    require_trusted(cfg, source)
    return cfg


def _between(runs: Sequence[RunFolder]) -> Block:
    known = [run for run in runs if run.config is not None]
    try:
        configs = [_trusted(str(run.config), str(run.path / "config.yaml")) for run in known]
        found = [config_differences(configs[0], each) for each in configs[1:]]
    except (ConfigError, CheckpointError) as error:
        return Note(f"The configs of the runs cannot be compared: {error} Add --trust-config.")
    values: dict[str, dict[int, Any]] = {}
    for place, each in enumerate(found, start=1):
        for key, before, now in each:
            values.setdefault(key, {0: before})[place] = now
    values = {key: each for key, each in values.items() if key != "train.output_dir"}
    if not values:
        return Note("The configs of the runs differ only in their output folders.")
    rows = [
        [key, *(_short(each.get(place, each[0])) for place in range(len(known)))]
        for key, each in values.items()
    ]
    head = ["setting", *(run.name for run in known)]
    return Table("Where the runs differ", head, rows, words=True)


def _short(value: Any) -> str:
    text = "-" if value is None else str(value) or "''"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


# --- environment ---------------------------------------------------------------------------------


def environment(runs: Sequence[RunFolder]) -> Section:
    """Versions and machine."""
    facts = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for each in facts for name in each))
    if not names:
        return Section("environment", "Environment", [], files=(RUN,))
    rows = [[name, *(each.get(name, "-") for each in facts)] for name in names]
    head = ["", *(["value"] if len(runs) == 1 else [run.name for run in runs])]
    table = Table("Versions and machine", head, rows, words=True)
    return Section("environment", "Environment", [table], files=(RUN,))


def _facts(run: RunFolder) -> dict[str, str]:
    about = run.about
    versions = about.get("versions") or {}
    found = {name: str(version) for name, version in versions.items()}
    for name, key in (("device", "device"), ("processes", "num_processes"), ("seed", "seed")):
        if about.get(key) is not None:
            found[name] = str(about[key])
    machine = {key: each for key, each in (about.get("machine") or {}).items() if key != "torch"}
    found |= {key.replace("_", " "): str(value) for key, value in machine.items()}
    for name, digest in (about.get("annotations") or {}).items():
        found[f"{name} annotations, SHA-256"] = str(digest)
    seconds = run.results.get("seconds_per_iteration")
    return found if seconds is None else found | {"seconds per iteration": number(seconds, 3)}


# --- commands ------------------------------------------------------------------------------------


def commands(runs: Sequence[RunFolder]) -> Section:
    """How the runs were started, and what can be done next."""
    lines = []
    for run in runs:
        for start in run.starts:
            words = ["sparsedet", "train", str(start["config"]), *start.get("overrides", [])]
            words += ["--resume"] if start.get("iteration") else []
            when = f"{run.name}, {start['time']}" if start.get("time") else run.name
            lines.append((when, shlex.join(words)))
    blocks: list[Block] = [Commands("How it was started", lines)] if lines else []
    blocks.append(Commands("What next", _next(runs[0]) if len(runs) == 1 else _beside(runs)))
    return Section("commands", "Commands", blocks)


def _next(run: RunFolder) -> list[tuple[str, str]]:
    folder, place = run.path, run.place
    again = [("Write this page again", f"sparsedet report {place}")]
    best = next((n for n in ("model_best.pth", "model_final.pth") if (folder / n).is_file()), None)
    if best is None:
        return again
    weights = f"{place}/{best}"
    return [
        ("Find objects in pictures", f"sparsedet predict {weights} photo.jpg --output found"),
        ("See which tokens are kept", f"sparsedet explain {weights} photo.jpg"),
        ("Evaluate again, with plots", f"sparsedet eval {weights} dataloader.evaluator.plots=true"),
        ("Export for onnxruntime", f"sparsedet export {weights} detector.onnx"),
        *again,
    ]


def _beside(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    places = shlex.join(str(run.path) for run in runs)
    return [("Write this page again", f"sparsedet report {places}")]

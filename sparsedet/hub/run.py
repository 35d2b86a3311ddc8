"""Read the results of a training run: weights, config, evaluations, costs."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from sparsedet.checkpoint import CheckpointError, leave_out_pretrained, load_checkpoint
from sparsedet.config import setting
from sparsedet.config.files import raw_values
from sparsedet.config.naming import join, shown
from sparsedet.config.trust import require_trusted
from sparsedet.files import read_object, read_rows
from sparsedet.loading import name_classes, stored_config
from sparsedet.weights.table import CONFIG, WEIGHTS

ANALYSIS = "analysis.json"
"""Name of the file of `sparsedet analyze --output` in the folder of a run."""

_WEIGHTS = ("model_best.pth", "model_final.pth")
# values that replace paths of this machine
_ELSEWHERE = {
    "dataset.path": None,
    "dataset.train_json": None,
    "dataset.train_images": None,
    "dataset.val_json": None,
    "dataset.val_images": None,
    "dataset.cache_dir": None,
    "train.output_dir": "output",
    "train.init_checkpoint": "",
    "train.mlflow.tracking_uri": None,
}
_LOCAL = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|(?!hf:)[a-z][a-z0-9+.-]+://")
_EVALUATED = "eval/"
_NUMBER = (int, float)
# what the card takes from results.json
_KINDS = {
    "config": str,
    "device": str,
    "keep_ratio": _NUMBER,
    "overrides": list,
    "seconds_training": _NUMBER,
    "versions": dict,
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A checkpoint and the other results of its run.

    Attributes:
        path: the checkpoint file.
        checkpoint: its content.
        cfg: its config, with the classes.
        iteration: the iteration after which it was written; None if unknown.
        metrics: metrics of these weights by name, such as ``bbox/AP``; empty if they were not
            evaluated.
        results: content of ``results.json``; empty without the file.
        analysis: content of :data:`ANALYSIS`; empty without the file.
    """

    path: Path
    checkpoint: Mapping[str, Any]
    cfg: Any
    iteration: int | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    analysis: Mapping[str, Any] = field(default_factory=dict)


def read_run(source: str | os.PathLike[str]) -> Run:
    """Read a checkpoint and the other results in its folder.

    Args:
        source: the checkpoint, or the folder of its run.

    Raises:
        CheckpointError: there are no weights, or they have no config.
        ConfigError: the config would call untrusted code, or does not define the classes.
    """
    path = _weights_in(Path(source)) if os.path.isdir(source) else Path(source)
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint.get("config"), str):
        raise CheckpointError(
            f"checkpoint {path} has no config of its model. Name a checkpoint of `sparsedet train`."
        )
    cfg = stored_config(checkpoint["config"], f"checkpoint {path}")
    require_trusted(cfg, f"the config in checkpoint {path}")
    for key in ("model", "dataset", "dataloader.test.mapper"):
        if setting(cfg, key) is None:
            raise CheckpointError(
                f"the config in checkpoint {path} has no {key}, which is needed to pass pictures "
                "to the model."
            )
    name_classes(cfg, f"the config in checkpoint {path}")
    best = checkpoint.get("best") or {}
    iteration = best.get("iteration", checkpoint.get("iteration"))
    return Run(
        path,
        checkpoint,
        cfg,
        iteration,
        metrics=_metrics(path.parent / "metrics.json", iteration),
        results=_results(path.parent / "results.json"),
        analysis=_json(path.parent / ANALYSIS),
    )


def _weights_in(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is not a training run, but an already written model. Copy the folder, or "
            "upload it with --push, for which it needs a README.md."
        )
    raise CheckpointError(
        f"{folder} has no {' and no '.join(_WEIGHTS)}. Name the folder of a training run that was "
        "evaluated, or a checkpoint."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) or {}
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged. Delete it, or create it again.") from error


def _results(path: Path) -> dict[str, Any]:
    found = {key: value for key, value in _json(path).items() if value is not None}
    for key, kind in _KINDS.items():
        if key in found and not isinstance(found[key], kind):
            raise CheckpointError(
                f"{path} is damaged: {key} is {shown(found[key])}. Delete it, or create it again."
            )
    return found


def _metrics(path: Path, iteration: int | None) -> dict[str, float]:
    """The metrics of the last evaluation at an iteration, from the rows of a run."""
    found: dict[str, float] = {}
    for row in read_rows(path):
        if row.get("iteration") == iteration:
            values = {
                key: value
                for key, value in row.items()
                if key.startswith(_EVALUATED) and isinstance(value, _NUMBER) and isfinite(value)
            }
            found = {k.removeprefix(_EVALUATED): v for k, v in values.items()} or found
    return found


def portable(cfg: Any) -> Any:
    """A copy of a config without paths of this machine, which loads anywhere.

    Args:
        cfg: the config of a run.
    """
    cfg = copy.deepcopy(cfg)
    leave_out_pretrained(cfg)  # the weights of the whole model replace them
    for key, path in list(local_paths(raw_values(cfg))):
        if key.startswith("dataset.class_names"):
            continue
        group, _, name = key.rpartition(".")
        if key in _ELSEWHERE:
            setting(cfg, group)[name] = _ELSEWHERE[key]
        else:
            _logger.warning("%s=%s is a path of this machine; it is written unchanged", key, path)
    return cfg


def local_paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys and strings that name a path on this machine or in a storage.

    Args:
        value: plain values.
        key: the key of these values.
    """
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from local_paths(each, join(key, name))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from local_paths(each, join(key, index))
    elif isinstance(value, str) and _LOCAL.match(value):
        yield key, value

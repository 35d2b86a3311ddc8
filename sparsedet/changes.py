"""What differs from the run to resume, and which differences would affect its results."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from sparsedet import __version__, comm
from sparsedet.config import ConfigError, instantiate, setting
from sparsedet.config.files import raw_values
from sparsedet.config.naming import dotted_name, keyword_parameters, locate
from sparsedet.data import AnnotatedDataset
from sparsedet.files import file_digest
from sparsedet.loading import stored_config

__all__ = ["Change", "changes", "config_differences", "run_facts", "schedule_change", "tell"]

logger = logging.getLogger(__name__)

# What determines the final weights of a run ...
_BENDING = (
    "model",
    "optimizer",
    "lr_multiplier",
    "dataset",
    "dataloader.train",
    "train.seed",
    "train.accumulation_steps",
    "train.amp",
    "train.clip_grad",
    "train.model_ema",
)
# ... except for these: paths (contents are compared), evaluation, what resuming ignores, and how
# fast batches are made.
_HARMLESS = (
    "model.backbone.weights",
    "model.backbone.pretrained",
    "dataset.path",
    "dataset.format",
    "dataset.train_json",
    "dataset.train_images",
    "dataset.val_json",
    "dataset.val_images",
    "dataset.test_short_side",
    "dataset.num_classes",
    "dataset.max_image_pixels",
    "dataset.cache_dir",
    "dataset.cache_gigabytes",
    "dataloader.train.dataset.split",
    "dataloader.train.dataset.format",
    "dataloader.train.num_workers",
    "dataloader.train.timeout",
)
# together they say how many images an iteration sees
_BATCH = ("dataloader.train.total_batch_size", "train.accumulation_steps")
_TRAINING_SET = "the SHA-256 of the training annotations"
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_LONGEST = 80
_POINTS = 1000


@dataclass(frozen=True)
class Change:
    """A difference between the run to resume and the present one.

    Attributes:
        name: a key of the config, or the name of a fact.
        before: the value in the run to resume.
        now: the present value.
        bends: whether it affects results, so that the resumed run would mix two settings.
    """

    name: str
    before: Any
    now: Any
    bends: bool

    def __str__(self) -> str:
        return (
            f"{self.name} was {_shown(self.before)} in the checkpoint and is {_shown(self.now)} now"
        )


def run_facts(device: torch.device, loaders: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depends on besides its config; its checkpoints record it.

    Args:
        device: the device that the run uses.
        loaders: its loaders by purpose ("training", ...). A digest of the annotations is recorded
            for each loader that knows its data set.
    """
    facts: dict[str, Any] = {
        "sparsedet": __version__,
        "torch": str(torch.__version__),  # a subclass of str, which safe loading refuses
        "the number of processes": comm.get_world_size(),
        "the device": device.type,
    }
    for name, loader in loaders.items():
        dataset = getattr(loader, "source", None)
        if isinstance(dataset, AnnotatedDataset):
            facts[f"the SHA-256 of the {name} annotations"] = _digest(dataset)[:16]
    return facts


def _digest(dataset: AnnotatedDataset) -> str:
    path = Path(dataset.source)
    whole = dataset.format == "coco" and path.is_file()  # other formats have many files
    return file_digest(path) if whole else dataset.digest()


def changes(
    checkpoint: Mapping[str, Any], source: str, *, config: str | None, facts: Mapping[str, Any]
) -> list[Change]:
    """Differences in config and facts; what the checkpoint does not record is left out.

    Args:
        checkpoint: the checkpoint to resume from.
        source: where it was read from, for messages.
        config: the text of the present config.
        facts: the facts of the present run, see `run_facts`.

    Raises:
        CheckpointError: the checkpoint holds a config that cannot be read.
    """
    found = []
    before = checkpoint.get("config")
    if isinstance(before, str) and config is not None and before != config:
        old, new = (stored_config(text, source) for text in (before, config))
        found += _config_changes(old, new)
    earlier = checkpoint.get("run")
    if isinstance(earlier, Mapping):
        found += [
            Change(name, earlier[name], now, bends=name == _TRAINING_SET)
            for name, now in facts.items()
            if name in earlier and earlier[name] != now
        ]
    return found


def _config_changes(old: Any, new: Any) -> list[Change]:
    same_batch = _images(old) == _images(new) is not None
    return [
        Change(key, before, now, bends=_bends(key, same_batch))
        for key, before, now in config_differences(old, new)
    ]


def _bends(key: str, same_batch: bool) -> bool:
    if same_batch and key in _BATCH:
        return False
    return _is_under(key, _BENDING) and not _is_under(key, _HARMLESS)


def _is_under(key: str, groups: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{group}.") for group in groups)


def _images(cfg: Any) -> int | None:
    """Images per iteration; None if the config of the loader does not say."""
    numbers = [setting(cfg, key) for key in _BATCH]
    return numbers[0] * numbers[1] if all(isinstance(n, int) for n in numbers) else None


def schedule_change(cfg: Any, before: Any, now: int) -> Change | None:
    """The change of the length of the run, if any; it bends a schedule that depends on the length.

    Args:
        cfg: the config, with an `lr_multiplier`.
        before: iterations of the run to resume.
        now: iterations of the present run.
    """
    if not isinstance(before, int) or before < 1 or before == now:
        return None
    old, new = _schedule(cfg, before), _schedule(cfg, now)
    shared = min(before, now)
    points = range(0, shared, max(1, shared // _POINTS))
    same = all(abs(old(i / before) - new(i / now)) < 1e-9 for i in points)
    name = "the number of iterations" if same else "the length of the learning rate schedule"
    return Change(name, before, now, bends=not same)


def _schedule(cfg: Any, length: int) -> Any:
    """The learning rate multiplier of a run of this length, to which its config may refer."""
    present, cfg.train.max_iter = cfg.train.max_iter, length
    try:
        return instantiate(cfg.lr_multiplier)
    finally:
        cfg.train.max_iter = present


def tell(found: list[Change], path: Path, *, accept: bool) -> None:
    """Log all changes; refuse those that affect results unless they are accepted.

    Args:
        found: the changes.
        path: the checkpoint to resume from.
        accept: the user accepts changes that affect results.

    Raises:
        ConfigError: a change affects results and is not accepted; the message names it.
    """
    bending = [change for change in found if change.bends]
    if bending and not accept:
        raise ConfigError(
            f"{path} cannot be resumed, because {'; '.join(map(str, bending))}. Undo the change, "
            "set another train.output_dir, or resume anyway with --accept-changes."
        )
    for change in found:
        level = logging.WARNING if change.bends else logging.INFO
        logger.log(level, "%s%s", "accepted: " if change.bends else "", change)
    if not found:
        logger.info("no settings, versions or annotations have changed since %s was written", path)


def config_differences(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Where two configs differ: key, value of the first, value of the second.

    A call of something else is one difference, and an argument that is left to its default is none.
    To find defaults, what the configs name is imported: see `sparsedet.config.trust`.
    """
    return list(_differences(raw_values(old), raw_values(new), "", (old, new)))


def _differences(
    old: Any, new: Any, key: str, configs: tuple[Any, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Where two configs differ: key, before, now. Calls of different targets are one difference.

    Args:
        old: a part of the first config.
        new: the same part of the second.
        key: the key of this part.
        configs: the two whole configs, in which references are resolved.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys([*old, *new])
        if old.get("_target_") != new.get("_target_"):
            names = {"_target_": None}
        for name in names:
            path = f"{key}.{name}" if key else str(name)
            before, now = _said(old, new, name), _said(new, old, name)
            if (
                name not in old or name not in new
            ):  # compare a default with the value of a reference
                before, now = map(_meant, (before, now), configs)
            yield from _differences(before, now, path, configs)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if any(isinstance(each, Mapping) for each in old):
            for index, (before, now) in enumerate(zip(old, new, strict=True)):
                yield from _differences(before, now, f"{key}.{index}", configs)
        elif old != new:
            yield key, old, new
    elif old != new:
        yield key, old, new


def _said(call: Mapping[str, Any], other: Mapping[str, Any], name: Any) -> Any:
    """The value of an argument in a call, or its default if only the other call gives it.

    So an argument that a later version adds to its configs is no change.
    """
    target = call.get("_target_")
    if name in call or not isinstance(target, str) or target != other.get("_target_"):
        return call.get(name)
    named, _ = keyword_parameters(locate(target)) or ({}, True)
    default = named[name].default if name in named else None
    if default is inspect.Parameter.empty:
        return None
    if is_dataclass(default) and not isinstance(default, type):
        values = {each.name: getattr(default, each.name) for each in fields(default)}
        return {"_target_": dotted_name(type(default)), **values}
    return list(default) if isinstance(default, tuple) else default


def _meant(value: Any, cfg: Any) -> Any:
    """The value with its references resolved."""
    if isinstance(value, Mapping):
        return {name: _meant(each, cfg) for name, each in value.items()}
    reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return value if reference is None else setting(cfg, reference[1])


def _shown(value: Any) -> str:
    text = str(value) or "''"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

"""Saved configs and overrides of earlier versions, in the terms of the present one."""

from __future__ import annotations

import logging
from typing import Any

from sparsedet.config.naming import join
from sparsedet.config.stand_ins import is_describing

logger = logging.getLogger(__name__)

_TRAIN = "sparsedet.data.TrainLoader"
_TEST = "sparsedet.data.TestLoader"
_EVALUATOR = "sparsedet.evaluation.COCOEvaluator"
_OF_THE_SET = ("annotations", "images", "class_names")

_CLASSES = {"ForegroundTokenSelector": "ForegroundScorer"}
_DECODER = {"conditional_pos": "makes_pos"}
RENAMED_ARGUMENTS = {
    "SetCriterion": {"stage": "unmatched"},
    "DeformableDecoder": _DECODER,
    "GlobalDecoder": _DECODER,
    "InterleavedDecoder": _DECODER,
}
"""Arguments that have another name now, by the class: old name to present name."""
EARLIER_NAMES = frozenset(old for names in RENAMED_ARGUMENTS.values() for old in names)


def in_present_terms(content: dict[str, Any]) -> dict[str, Any]:
    """Translate a saved config.

    Renamed classes and arguments get their present names. Loaders and evaluators that read the
    annotations by themselves get a data set instead.

    Args:
        content: what a YAML file of a config holds; changed in place.
    """
    rename(content, "")
    loaders = content.get("dataloader")
    if not isinstance(loaders, dict):
        return content
    for name, call in loaders.items():
        if not isinstance(call, dict) or "annotations" not in call or "dataset" in call:
            continue
        if call.get("_target_") in (_TRAIN, _TEST):
            call["dataset"] = {key: call.pop(key) for key in _OF_THE_SET if key in call}
            call["dataset"]["_target_"] = "sparsedet.data.open_dataset"
            if call["_target_"] == _TRAIN:  # they are replaced, and always were
                call["dataset"]["skip_broken_images"] = True
        elif call.get("_target_") == _EVALUATOR and name == "evaluator" and "test" in loaders:
            del call["annotations"]
            call.pop("class_names", None)
            call["dataset"] = "${dataloader.test.dataset}"  # the same object: it is read once
    return content


def rename(value: Any, path: str) -> None:
    """Give renamed classes and arguments in plain lists and dicts their present names, in place.

    Args:
        value: a part of a config.
        path: its key, for the line in the log.
    """
    if isinstance(value, list):
        for place, each in enumerate(value):
            rename(each, join(path, place))
    elif isinstance(value, dict):
        target = value.get("_target_")
        if isinstance(target, str):
            _rename_call(value, target, path)
        for key, each in value.items():
            rename(each, join(path, key))


def _rename_call(call: dict[str, Any], target: str, path: str) -> None:
    module, _, name = target.rpartition(".")
    if _is_ours(target) and name in _CLASSES:
        call["_target_"] = f"{module}.{_CLASSES[name]}"
    new_names = {key: present_argument(target, key) for key in call}
    found = {old: new for old, new in new_names.items() if new is not None and new not in call}
    if found:
        items = [(found.get(key, key), each) for key, each in call.items()]
        call.clear()
        call.update(items)
    for old, new in found.items():
        if not is_describing():
            logger.info("%s is called %s now", join(path, old), join(path, new))


def present_argument(target: str, argument: str) -> str | None:
    """The present name of a renamed argument; None for others.

    Args:
        target: dotted path of the class.
        argument: its name in a saved config or an override.
    """
    arguments = RENAMED_ARGUMENTS.get(target.rpartition(".")[2], {})
    return arguments.get(argument) if _is_ours(target) else None


def _is_ours(target: str) -> bool:
    return target.startswith("sparsedet.")

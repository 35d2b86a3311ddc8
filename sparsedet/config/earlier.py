"""Saved configs of earlier versions, in the terms of the present one."""

from __future__ import annotations

from typing import Any

_TRAIN = "sparsedet.data.TrainLoader"
_TEST = "sparsedet.data.TestLoader"
_EVALUATOR = "sparsedet.evaluation.COCOEvaluator"
_OF_THE_SET = ("annotations", "images", "class_names")


def in_present_terms(content: dict[str, Any]) -> dict[str, Any]:
    """Give loaders and evaluators that read the annotations by themselves a data set instead.

    Args:
        content: what a YAML file of a config holds; changed in place.
    """
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

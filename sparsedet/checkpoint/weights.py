"""Load weights into models; errors name every tensor that does not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from sparsedet.checkpoint.files import CheckpointError, load_checkpoint, model_weights
from sparsedet.checkpoint.values import conversions, describe, non_finite, other_kinds

__all__ = [
    "CLASS_HEAD",
    "LABEL_EMBEDDING",
    "Differences",
    "LoadReport",
    "check_weights",
    "compare_weights",
    "leave_out_pretrained",
    "load_weights",
    "restore_model",
]

_SHOWN = 5
# a backbone file has few other tensors (a classifier); the file of a whole detector has many
_PART_SHARE = 0.8


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`.

    Attributes:
        module: The part that was filled, as a path inside the model; empty for the whole model.
        num_loaded: Number of tensors taken from the file.
        reinitialized: Class-dependent tensors that kept their initial values on request.
        unused: Tensors of the file that the filled part does not have.
        uncalibrated: Calibrated tensors of the selector that the file does not have.
        converted: Number of tensors with another floating-point type in the file, by that type.
    """

    module: str
    num_loaded: int
    reinitialized: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    uncalibrated: tuple[str, ...] = ()
    converted: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Differences:
    """Differences between a state dict and a model; `str` gives the first few names.

    Attributes:
        missing: Tensors that only the model has.
        unexpected: Tensors that only the state dict has.
        mismatched: Shapes in the state dict and in the model, if they differ.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def __str__(self) -> str:
        shapes = [f"{name} {was} instead of {own}" for name, (was, own) in self.mismatched.items()]
        parts = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": shapes,
        }
        return ", ".join(f"{len(parts[p])} {p} ({_shorten(parts[p])})" for p in parts if parts[p])


# Tensors with a row per class: the heads of all stages; denoising labels may have one more row.
CLASS_HEAD = re.compile(r"heads\..+\.class_embed\.(weight|bias)")
LABEL_EMBEDDING = "denoising.label_embedding.weight"
# A model may be initialized from one with another scorer or selector, or with denoising.
_SWAPPABLE = (
    "scorer.", "selector.", "regions.scorer.", "regions.selector.", "denoising.",
    "heads.scorer_head.", "heads.embedding.",
)  # fmt: skip
# The calibration of a selector is not a weight; the selector reports by itself if it is missing.
_CALIBRATED = ("selector.", "regions.selector.")


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    reinit_class_heads: bool = False,
) -> LoadReport:
    """Initialize a model from a checkpoint; tensors that do not fit are an error.

    Additional tensors of a scorer, a selector or denoising are ignored and reported. So trained
    weights can be used in a dense model, in one whose scorer has no weights, and in one without
    denoising. Tensors of the model's selector that the file lacks are reported as well; the
    selector must then be calibrated.

    The file has the weights of the whole model, or only of its backbone (a torchvision or timm
    file). In the second case it has no key of the model and every key of one of its modules.

    Args:
        model: Filled in place; unchanged if an error is raised.
        path: A `.pth` or `.safetensors` file.
        reinit_class_heads: Whether class-dependent tensors keep their initial values: the class
            heads of all stages and the label embedding of denoising.

    Raises:
        CheckpointError: If the file cannot be read, keys, shapes or number types do not fit, or
            values are not finite.
    """
    weights = _drop_counters(model_weights(load_checkpoint(path)), model)
    own = model.state_dict()
    if not own.keys() & weights.keys():
        return _load_part(model, weights, path)
    reinitialized = tuple(filter(_is_of_classes, own)) if reinit_class_heads else ()
    for name in reinitialized:
        own.pop(name)
        weights.pop(name, None)
    differences = compare_weights(own, weights)
    if sentence := _class_sentence(differences):
        raise CheckpointError(
            f"checkpoint {path} {sentence} To fine-tune it with new class heads, set "
            "train.reinit_class_heads=True; otherwise use a checkpoint with the same classes."
        )
    unused = tuple(name for name in differences.unexpected if name.startswith(_SWAPPABLE))
    unexpected = [name for name in differences.unexpected if name not in unused]
    uncalibrated = tuple(name for name in differences.missing if name.startswith(_CALIBRATED))
    missing = [name for name in differences.missing if name not in uncalibrated]
    _require_match(replace(differences, missing=missing, unexpected=unexpected), path)
    kept = {name: tensor for name, tensor in weights.items() if name not in unused}
    _require_numbers(own, kept, path)
    model.load_state_dict(kept, strict=not (reinitialized or uncalibrated))
    return LoadReport(
        module="",
        num_loaded=len(kept),
        reinitialized=reinitialized,
        unused=unused,
        uncalibrated=uncalibrated,
        converted=conversions(own, kept),
    )


def restore_model(
    model: nn.Module, weights: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
) -> None:
    """Load the weights of a run that is resumed.

    Args:
        model: Filled in place; unchanged if an error is raised.
        weights: A state dict with the same keys and shapes.
        path: The file of the weights, for the message.

    Raises:
        CheckpointError: If keys, shapes or number types differ, or values are not finite.
    """
    own = model.state_dict()
    differences = compare_weights(own, weights)
    if sentence := _class_sentence(differences):
        raise CheckpointError(
            f"checkpoint {path} {sentence} A run can be resumed only with the same classes. To "
            f"fine-tune, set another train.output_dir, train.init_checkpoint={path} and "
            "train.reinit_class_heads=True."
        )
    _require_match(differences, path)
    _require_numbers(own, weights, path)
    model.load_state_dict(dict(weights))


def check_weights(
    model: nn.Module, weights: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
) -> None:
    """Raise a CheckpointError unless a state dict has the names and shapes of the model's."""
    _require_match(compare_weights(model.state_dict(), weights), path)


def compare_weights(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]
) -> Differences:
    """Compare a `given` state dict with that of a model (`own`)."""
    return Differences(
        missing=[name for name in own if name not in given],
        unexpected=[name for name in given if name not in own],
        mismatched={
            name: (tuple(given[name].shape), tuple(own[name].shape))
            for name in own
            if name in given and given[name].shape != own[name].shape
        },
    )


def _is_of_classes(name: str) -> bool:
    return name == LABEL_EMBEDDING or CLASS_HEAD.fullmatch(name) is not None


def _class_sentence(differences: Differences) -> str:
    """A sentence about a file with other classes; empty unless that explains every mismatch."""
    mismatched = differences.mismatched
    heads = [name for name in mismatched if CLASS_HEAD.fullmatch(name)]
    if not heads or not all(map(_is_of_classes, mismatched)):
        return ""
    if any(not given or given[1:] != own[1:] for given, own in mismatched.values()):
        return ""
    given, own = mismatched[heads[0]]
    picks = " `sparsedet convert-weights --classes contiguous` keeps COCO's 80 classes of 91 ids."
    return (
        f"has {given[0]} classes, but the model has {own[0]} "
        f"({heads[0]} is {given} in the file and {own} in the model)."
        f"{picks if (given[0], own[0]) == (91, 80) else ''}"
    )


def _require_match(differences: Differences, path: str | os.PathLike[str]) -> None:
    if differences:
        raise CheckpointError(
            f"checkpoint {path} does not fit the model. Tensors that differ: {differences}. "
            "Use the config with which the checkpoint was trained."
        )


def _require_numbers(
    own: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
) -> None:
    """Refuse values that the model cannot use; names and shapes were checked before."""
    if kinds := other_kinds(own, given):
        named = [f"{name} is {was} instead of {needed}" for name, (was, needed) in kinds.items()]
        raise CheckpointError(
            f"checkpoint {path} does not fit the model. Tensors of another number type: "
            f"{len(kinds)} ({_shorten(named)}). Save them with the types of the model."
        )
    taken = {name: given[name].to(tensor.dtype) for name, tensor in own.items() if name in given}
    if found := non_finite(taken):
        by_design = non_finite({name: own[name] for name in found})  # such as a mask of infinities
        if broken := {name: count for name, count in found.items() if name not in by_design}:
            raise CheckpointError(
                f"checkpoint {path} has weights that are NaN or infinite: {describe(broken)}. Its "
                "training run diverged; use an earlier checkpoint."
            )


def _shorten(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _drop_counters(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Remove batch norm's step counters if the model's batch norms are frozen and have none."""
    own = model.state_dict().keys()
    counter = ".num_batches_tracked"
    if any(name.endswith(counter) for name in own):
        return weights
    return {name: tensor for name, tensor in weights.items() if not name.endswith(counter)}


def _load_part(
    model: nn.Module, weights: dict[str, torch.Tensor], path: str | os.PathLike[str]
) -> LoadReport:
    """Fill the module whose keys the file has, if these are most of the file's tensors."""
    for name, module in model.named_modules():
        own = module.state_dict()
        if not name or len(own) < _PART_SHARE * len(weights):
            continue
        for prefix in _prefixes(own, weights):
            kept = {key: weights[prefix + key] for key in own}
            _require_match(compare_weights(own, kept), path)
            _require_numbers(own, kept, path)
            module.load_state_dict(kept)
            unused = tuple(key for key in weights if key.removeprefix(prefix) not in own)
            return LoadReport(
                module=name,
                num_loaded=len(kept),
                unused=unused,
                converted=conversions(own, kept),
            )
    raise CheckpointError(
        f"checkpoint {path} has no tensor names of the model or its backbone, but "
        f"{_shorten(list(weights))}. Convert it, or use another file."
    )


def _prefixes(own: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    """Possible prefixes of a module's keys in a file that has all of them."""
    first = next(iter(own))
    for key in given:
        prefix = key.removesuffix(first)
        whole_names = key.endswith(first) and (not prefix or prefix.endswith("."))
        if whole_names and all(prefix + name in given for name in own):
            yield prefix


def leave_out_pretrained(cfg: Any) -> list[str]:
    """Unset the pretrained weights of the backbone, since a checkpoint replaces them.

    Args:
        cfg: configuration with a ``model``; changed in place.

    Returns:
        The keys of ``model`` that were unset.
    """
    found = []
    for prefix, node in (("", cfg.model), ("backbone.", cfg.model.get("backbone") or {})):
        for key, absent in (("weights", None), ("pretrained", False)):
            if node.get(key):
                node[key] = absent
                found.append(f"{prefix}{key}")
    return found

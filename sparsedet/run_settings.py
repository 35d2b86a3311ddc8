"""The `train` dictionary of a config: ours, or detectron2's or detrex's translated to ours."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from sparsedet.config import ConfigError, check_keys, get_config, setting
from sparsedet.config.calls import is_plain, value_at
from sparsedet.config.naming import shown
from sparsedet.config.rules import Rule, check_settings
from sparsedet.weights.table import HUB

logger = logging.getLogger(__name__)

# Keys of theirs that have another name in ours.
_ELSEWHERE = {"wandb.params.project": "wandb.project", "wandb.params.name": "wandb.name"}
# Keys of theirs that we do not have, and the value that asks for nothing; None = any value.
_WITHOUT_EFFECT = {
    "fast_dev_run.enabled": False,
    "ddp.fp16_compression": False,
    "model_ema.device": "",
    "model_ema.use_ema_weights_for_eval_only": False,
    "wandb.params.dir": None,
}
_TAKEN_AS_THEY_ARE = ("clip_grad.params", "ddp.broadcast_buffers")

_COUNT = Rule(int, least=1)
_PERIOD = Rule(int | None, least=0)
_NAME = Rule(str | None)
# Without a rule, a value must be of the type in `configs/common/train.py` and not negative.
_RULES = {
    "output_dir": Rule(str, place=True, here=True, empty=False),
    "init_checkpoint": Rule(str | None, place=True, here=True, fetched=HUB),
    "epochs": Rule(float | None, above=0, most=1e6),
    "max_iter": Rule(int | None, least=1),
    "accumulation_steps": _COUNT,
    "seed": Rule(int | None, least=0, most=math.inf),
    "amp.dtype": Rule(str, choices=("float16", "bfloat16")),
    "clip_grad.params.max_norm": Rule(float, above=0, most=math.inf),
    "clip_grad.params.norm_type": Rule(float, above=0, most=math.inf),
    "clip_grad.params.error_if_nonfinite": Rule(bool),
    "clip_grad.params.foreach": Rule(bool | None),
    "model_ema.decay": Rule(float, least=0, below=1),
    "ddp.broadcast_buffers": Rule(bool),
    "eval_epochs": Rule(float, least=0, most=1e6),
    "eval_period": _PERIOD,
    "early_stopping.patience": Rule(int | None, least=1),
    "checkpointer.epochs": Rule(float, least=0, most=1e6),
    "checkpointer.period": _PERIOD,
    "checkpointer.max_to_keep": _COUNT,
    "log_period": _COUNT,
    "wandb.name": _NAME,
    "mlflow.tracking_uri": _NAME,
    "mlflow.name": _NAME,
}


def run_settings(train: Any) -> Any:
    """Settings of a run, with every key of ``configs/common/train.py``.

    Missing keys, as in a config that an earlier version saved, get the values of
    ``configs/common/train.py``, and the log names them. A dictionary without ``epochs`` is read as
    one of detectron2 or detrex, whose length is ``max_iter``; features that it does not set are
    off.

    Args:
        train: ``cfg.train``; changed in place.

    Raises:
        ConfigError: a key is unknown, a value is invalid, or it asks for a feature that this
            library lacks.
    """
    ours = get_config("common/train.py").train
    found = _in_our_terms(train, ours.copy())
    check_settings(found, _RULES, reference=ours, path="train")
    if found.max_iter is None and found.epochs is None:
        raise ConfigError("train must have epochs or max_iter, got neither. Set train.max_iter.")
    if found.init_checkpoint is None:
        found.init_checkpoint = ""
    return found


def _in_our_terms(train: Any, ours: Any) -> Any:
    if not is_plain(train):
        raise ConfigError(f"train must be a group of settings, got {shown(train)}. Set its keys.")
    if "epochs" in train:
        check_keys(train, ours, "train")
        if filled := _fill(train, ours):
            logger.info("train lacks %s; the defaults are used", ", ".join(filled))
        return train
    ours.epochs, ours.eval_epochs, ours.checkpointer.epochs = None, 0, 0
    ours.clip_grad.enabled = False
    for key, value in _leaves(train):
        key = _ELSEWHERE.get(key, key)
        if key in _WITHOUT_EFFECT:
            if _WITHOUT_EFFECT[key] not in (None, value):
                only = repr(_WITHOUT_EFFECT[key])
                raise ConfigError(
                    f"train.{key} must be {only} here, got {shown(value)}. Change it."
                )
        elif key.startswith(_TAKEN_AS_THEY_ARE) or key in dict(_leaves(ours)):
            group, _, name = key.rpartition(".")
            (setting(ours, group) if group else ours)[name] = value
        else:
            check_keys({key: value}, dict.fromkeys(dict(_leaves(ours))), "train")
    if isinstance(ours.seed, int) and ours.seed < 0:
        ours.seed = None  # their value for "draw one"
    return ours


def _fill(settings: Any, ours: Any, path: str = "") -> list[str]:
    """Add missing keys with our values, also inside groups; return the added keys and values.

    A key that is still to be set (``???``) is not missing.
    """
    filled, present = [], list(settings)
    for key, value in ours.items():
        if key not in present:
            settings[key] = value
            filled.append(f"{path}{key} ({shown(value)})")
        elif isinstance(value, Mapping) and is_plain(given := value_at(settings, key, "train")):
            filled += _fill(given, value, f"{path}{key}.")
    return filled


def _leaves(settings: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name in settings:
        value = value_at(settings, name, path.removesuffix("."))
        if isinstance(value, Mapping):
            found += _leaves(value, f"{path}{name}.")
        else:
            found.append((f"{path}{name}", value))
    return found

"""The `train` dictionary of a config: ours, or that of detectron2 or detrex in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsedet.config import ConfigError, check_keys, get_config, setting

# Where theirs keep what ours have under another name.
_ELSEWHERE = {"wandb.params.project": "wandb.project", "wandb.params.name": "wandb.name"}
# What they have and we do not, and its value that asks for nothing; None = any value does.
_WITHOUT_EFFECT = {
    "fast_dev_run.enabled": False,
    "ddp.fp16_compression": False,
    "model_ema.device": "",
    "model_ema.use_ema_weights_for_eval_only": False,
    "wandb.params.dir": None,
}
_TAKEN_AS_THEY_ARE = ("clip_grad.params", "ddp.broadcast_buffers")


def run_settings(train: Any) -> Any:
    """Settings of a run, with every key of ``configs/common/train.py``.

    A dictionary without ``epochs`` is read as one of detectron2 or detrex, whose length is
    ``max_iter``. Features that it does not set are off, other keys have the values of
    ``configs/common/train.py``.

    Args:
        train: ``cfg.train``.

    Raises:
        ConfigError: a key is unknown or missing, or asks for a feature that this library lacks.
    """
    ours = get_config("common/train.py").train
    if "epochs" in train:
        check_keys(train, ours, "train")
        if absent := [key for key in ours if key not in train]:
            raise ConfigError(
                f"train lacks {', '.join(absent)}. Start from the train of common/train.py."
            )
        return train
    ours.epochs, ours.eval_epochs, ours.checkpointer.epochs = None, 0, 0
    ours.clip_grad.enabled = False
    for key, value in _leaves(train):
        key = _ELSEWHERE.get(key, key)
        if key in _WITHOUT_EFFECT:
            if _WITHOUT_EFFECT[key] not in (None, value):
                raise ConfigError(
                    f"train.{key} must be {_WITHOUT_EFFECT[key]!r} here, got {value!r}. Change it."
                )
        elif key.startswith(_TAKEN_AS_THEY_ARE) or key in dict(_leaves(ours)):
            group, _, name = key.rpartition(".")
            (setting(ours, group) if group else ours)[name] = value
        else:
            check_keys({key: value}, dict.fromkeys(dict(_leaves(ours))), "train")
    if ours.max_iter is None:
        raise ConfigError("train must have epochs or max_iter, got neither. Set train.max_iter.")
    if ours.seed is not None and ours.seed < 0:
        ours.seed = None  # theirs for "draw one"
    return ours


def _leaves(settings: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{path}{name}.")
        else:
            found.append((f"{path}{name}", value))
    return found

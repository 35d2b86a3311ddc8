"""Training: the loop and its hooks, optimizers and processes."""

from sparsedet.engine.ema import ModelEma
from sparsedet.engine.hooks import (
    CheckpointHook,
    EvalHook,
    Hook,
    LogHook,
    StopHook,
)
from sparsedet.engine.launch import launch
from sparsedet.engine.nonfinite import NonFiniteError
from sparsedet.engine.optim import (
    WarmupParamScheduler,
    clipping_adamw,
    param_groups,
    scaled_lr,
)
from sparsedet.engine.pace import PaceHook
from sparsedet.engine.pictures import PictureHook
from sparsedet.engine.trainer import Trainer

__all__ = [
    "CheckpointHook",
    "EvalHook",
    "Hook",
    "LogHook",
    "ModelEma",
    "NonFiniteError",
    "PaceHook",
    "PictureHook",
    "StopHook",
    "Trainer",
    "WarmupParamScheduler",
    "clipping_adamw",
    "launch",
    "param_groups",
    "scaled_lr",
]

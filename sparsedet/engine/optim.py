"""Parameter groups, learning rates and their schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.optim import AdamW, Optimizer

__all__ = ["WarmupParamScheduler", "clipping_adamw", "param_groups", "scaled_lr"]

_RULE_KEYS = {"pattern", "lr_factor", "weight_decay"}


def param_groups(
    model: nn.Module,
    base_lr: float,
    *,
    rules: Sequence[Mapping[str, Any]] = (),
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    Args:
        model: Frozen parameters are left out; every other parameter is in exactly one group.
        base_lr: Learning rate of parameters that match no rule.
        rules: Each has a `pattern` (a regular expression, searched in the parameter's name) and
            one or both of `lr_factor` (times `base_lr`) and `weight_decay`. If several rules
            match a parameter, the last one that sets a value wins.
        weight_decay_norm: Weight decay of normalization layers; None = the optimizer's.
        weight_decay_bias: Weight decay of biases; None = the optimizer's.

    Returns:
        Groups with `params`, `lr` and, if it was set, `weight_decay`.

    Raises:
        ValueError: If a rule is malformed or matches no parameter, or nothing is trainable.
    """
    names = [name for name, _ in model.named_parameters()]
    compiled = [(_compile(rule, names), rule) for rule in rules]
    norms = _norm_parameters(model)
    groups: dict[tuple[float, float | None], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr, weight_decay = base_lr, None
        if id(parameter) in norms:
            weight_decay = weight_decay_norm
        elif name.rsplit(".", 1)[-1] == "bias":
            weight_decay = weight_decay_bias
        for pattern, rule in compiled:
            if pattern.search(name):
                lr = base_lr * rule["lr_factor"] if "lr_factor" in rule else lr
                weight_decay = rule.get("weight_decay", weight_decay)
        groups.setdefault((lr, weight_decay), []).append(parameter)
    if not groups:
        raise ValueError("param_groups.model must have trainable parameters, got none.")
    return [
        {"params": params, "lr": lr}
        | ({} if weight_decay is None else {"weight_decay": weight_decay})
        for (lr, weight_decay), params in groups.items()
    ]


def _compile(rule: Mapping[str, Any], names: list[str]) -> re.Pattern[str]:
    keys = set(rule)
    if "pattern" not in keys or len(keys) < 2 or not keys <= _RULE_KEYS:
        raise ValueError(
            "param_groups.rules must have a pattern and lr_factor or weight_decay, got "
            f"{dict(rule)}. Set optimizer.params.rules."
        )
    for key in keys - {"pattern"}:
        value = rule[key]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf:
            raise ValueError(
                f"param_groups.rules must have numbers of at least 0 as {key}, got {dict(rule)}. "
                "Set optimizer.params.rules."
            )
    try:
        pattern = re.compile(rule["pattern"])
    except (re.error, TypeError) as error:
        raise ValueError(
            f"param_groups.rules must have regular expressions as patterns, got "
            f"{rule['pattern']!r} ({error}). Set optimizer.params.rules."
        ) from error
    if not any(pattern.search(name) for name in names):
        raise ValueError(
            "param_groups.rules must match parameters of the model, got the pattern "
            f"{rule['pattern']!r}, which matches none of {len(names)}. Change or "
            "remove it in optimizer.params.rules."
        )
    return pattern


def _norm_parameters(model: nn.Module) -> set[int]:
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
    }


def scaled_lr(lr: float, batch_size: int, *, base_batch_size: int = 16) -> float:
    """Scale the learning rate of a recipe to another batch size: `lr * sqrt(batch / base)`.

    This is the rule of the released Sparse DETR code. It is never applied automatically. In
    a config:
    `optimizer.lr = L(scaled_lr)(lr=2e-4, batch_size="${dataloader.train.total_batch_size}")`.

    Args:
        lr: The recipe's learning rate.
        batch_size: Images per optimizer step over all processes.
        base_batch_size: The recipe's batch size.
    """
    if batch_size < 1 or base_batch_size < 1:
        raise ValueError(
            "scaled_lr.batch_size and base_batch_size must be at least 1, got "
            f"{batch_size} and {base_batch_size}."
        )
    return lr * (batch_size / base_batch_size) ** 0.5


class WarmupParamScheduler(ParamScheduler):
    """A linear warm-up, followed by another schedule.

    Args:
        scheduler: The schedule after the warm-up; its value at that point ends the warm-up.
        warmup_length: Length of the warm-up as a fraction of the run; 0 for none.
        warmup_factor: Value at the start, as a fraction of the value at the end of the warm-up.
    """

    def __init__(
        self, scheduler: ParamScheduler, *, warmup_length: float, warmup_factor: float = 0.001
    ) -> None:
        if not 0 <= warmup_length < 1:
            raise ValueError(
                f"WarmupParamScheduler.warmup_length must be in [0, 1), got {warmup_length}. Set "
                "lr_multiplier.warmup_length to a fraction of the run."
            )
        self._scheduler = scheduler
        self._length = warmup_length
        self._start = warmup_factor * scheduler(warmup_length)
        self._end = scheduler(warmup_length)

    def __call__(self, where: float) -> float:
        """Multiplier of the learning rates at a point of the run, `where` in [0, 1]."""
        if where >= self._length:
            return self._scheduler(where)
        return self._start + (self._end - self._start) * where / self._length


def clipping_adamw(
    params: Any,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 1e-4,
    fused: bool | None = None,
    max_norm: float = 0.1,
    norm_type: float = 2.0,
) -> AdamW:
    """AdamW that clips the total gradient norm before each step.

    It is meant for trainers that do not clip gradients themselves, such as detectron2's. Our
    trainer clips according to `train.clip_grad`.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate of groups that set none.
        betas: Coefficients of the running averages.
        weight_decay: Weight decay of groups that set none.
        fused: Whether the step is one kernel; None = AdamW's default.
        max_norm: Upper limit of the gradient norm.
        norm_type: Order of the norm, such as 2.0.

    Raises:
        ValueError: If `max_norm` is not positive.
    """
    if max_norm <= 0:
        raise ValueError(
            f"clipping_adamw.max_norm must be positive, got {max_norm}. Set optimizer.max_norm."
        )
    optimizer = AdamW(params, lr, betas=betas, weight_decay=weight_decay, fused=fused)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]

    def clip(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # with a gradient scaler the fused kernel unscales later, so the limit must be scaled too
        scale = getattr(optimizer, "grad_scale", None)
        limit = max_norm if scale is None else max_norm * float(scale)
        nn.utils.clip_grad_norm_(parameters, limit, norm_type)

    optimizer.register_step_pre_hook(clip)
    return optimizer

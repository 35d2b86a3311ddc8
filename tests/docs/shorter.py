"""What is added to the commands of the pages, so that each does a little of what it would do."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

from sparsedet.checkpoint import leave_out_pretrained
from sparsedet.cli.common import is_override
from sparsedet.config import read_config
from tests.benchmark.tiny import tiniest

# A training as short as there can be.
SHORT = (
    "train.max_iter=1",
    "train.early_stopping.patience=null",
    "train.device=cpu",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
)
# What configs for COCO have more of than those for a CPU: pixels, and the model.
PICTURES = ("dataset.short_sides=[64]", "dataset.test_short_side=64", "dataset.max_size=96")
MODEL = (
    "model.embed_dim=32",
    "model.encoder.feedforward_dim=32",
    "model.decoder.feedforward_dim=32",
    "model.decoder.num_layers=2",
    "model.query_initializer.num_queries=40",
    "model.backbone.freeze_at=5",
)
WIDE = 100  # channels that no config for a CPU has


def shorter(words: Sequence[str]) -> list[str]:
    """The words after `sparsedet`, with more of them.

    Args:
        words: the command, its config and so on.
    """
    command, *rest = words
    if command == "train":
        return [*words, *of_training(rest)]
    if command == "sweep-config":
        at = words.index("--grid")
        return [*words[:at], *of_training(rest[:at]), *words[at:], "--only", "0"]
    if words[:2] == ["eval", "--weights"]:
        return [*words, *PICTURES, "dataloader.test.num_workers=0", "train.device=cpu"]
    if command == "benchmark":
        return [command, *tiniest(*rest)]
    if command == "sweep" and "--look" not in words:
        return [*words, "--ratios", "0.1", "0.4"]
    return list(words)


def of_training(words: Sequence[str]) -> list[str]:
    """Overrides for a training: one iteration, and a small model if it is not small by itself.

    Args:
        words: its config and overrides; what these set stays, except for the length.
    """
    own = [word for word in words if is_override(word)]
    config = words[words.index("--config-file") + 1] if "--config-file" in words else words[0]
    cfg = read_config(config, own)
    found: list[str] = []
    if cfg.model.get("embed_dim", WIDE) >= WIDE:
        found += [*PICTURES, "dataloader.train.total_batch_size=2", *([] if fits(own) else MODEL)]
        keys = {word.partition("=")[0] for word in own}
        found = [word for word in found if (key := word.partition("=")[0]) not in keys
                 and OmegaConf.select(cfg, key) is not None]  # fmt: skip
        if "model_args" in cfg.model.backbone:
            found.append("+model.backbone.model_args.depths=[2, 2, 2, 2]")  # Swin-L has 24
    off = {"weights": "null", "pretrained": "false"}
    absent = [f"model.{key}={off[key.rpartition('.')[2]]}" for key in leave_out_pretrained(cfg)]
    return [*SHORT, *found, *absent]


def fits(overrides: Sequence[str]) -> bool:
    """Whether the model must be as large as weights that no training of the page has written."""
    start = "train.init_checkpoint="
    return any(each.startswith(start) and "=output/" not in each for each in overrides)

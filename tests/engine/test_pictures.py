"""Pictures of the model are drawn after each evaluation, for writers that take them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsedet import training
from sparsedet.config import LazyConfig, instantiate
from sparsedet.data import TestLoader
from sparsedet.engine import EvalHook, PictureHook
from sparsedet.visualization import WatchedPictures
from tests.engine.test_hooks import Scores, make_trainer
from tests.predictor.trained import config, write_pictures
from tests.smoke.test_train_net import CONFIG, NARROW, draw_set, set_overrides


class Taker:
    """A writer that keeps what it gets."""

    takes_pictures = True

    def __init__(self) -> None:
        self.taken: list[tuple[int, str, np.ndarray]] = []

    def write_picture(self, iteration: int, name: str, pixels: np.ndarray) -> None:
        self.taken.append((iteration, name, pixels))

    def write(self, iteration: int, scalars: Any) -> None:
        pass

    def close(self) -> None:
        pass


def test_pictures_follow_evaluations() -> None:
    trainer, taker, drawn = make_trainer(5, ema=True), Taker(), []

    def draw(model: Any) -> dict[str, np.ndarray]:
        drawn.append(model)
        return {"a": np.zeros((2, 3, 3), dtype=np.uint8)}

    trainer.hooks = [EvalHook(2, Scores(1.0, 2.0, 3.0)), PictureHook(draw, [taker])]
    trainer.train()
    assert [(i, name) for i, name, _ in taker.taken] == [(n, "pictures/a") for n in (2, 4, 5)]
    assert drawn == [trainer.eval_model] * 3


def test_nothing_is_drawn_for_nobody() -> None:
    trainer = make_trainer(2)
    trainer.hooks = [EvalHook(1, Scores(1.0, 2.0)), PictureHook(pytest.fail, [])]
    trainer.train()
    assert trainer.iteration == 2


def test_a_run_outlives_pictures_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    trainer, tried = make_trainer(3), []

    def draw(model: Any) -> dict[str, np.ndarray]:
        tried.append(model)
        raise ValueError("no ink")

    trainer.hooks = [EvalHook(1, Scores(1.0, 2.0, 3.0)), PictureHook(draw, [Taker()])]
    caplog.set_level(logging.WARNING)
    trainer.train()
    assert trainer.iteration == 3 and len(tried) == 1
    assert caplog.messages == [
        "drawing pictures failed (ValueError: no ink); training continues without them"
    ]


def test_the_same_pictures_at_even_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seven pictures every other one; the modes of the model stay."""
    write_pictures(tmp_path)
    cfg = config(tmp_path)
    loader = instantiate(cfg.dataloader.test)
    assert isinstance(loader, TestLoader)
    model = instantiate(cfg.model)
    model.backbone.eval()
    watched, read = WatchedPictures(loader, score_threshold=0.0), []
    get = type(loader.dataset).__getitem__
    monkeypatch.setattr(
        type(loader.dataset), "__getitem__", lambda self, k: read.append(k) or get(self, k)
    )
    pictures = watched(model)
    assert read == [0, 2, 4, 6] and list(pictures) == ["1", "2", "3", "4"]
    assert model.training and model.encoder.training and not model.backbone.training
    for pixels in pictures.values():
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and max(pixels.shape) <= 1600
    again = watched(model)
    assert len(read) == 4, "they are read once"
    np.testing.assert_array_equal(pictures["3"], again["3"])
    with torch.no_grad():
        model.heads.decoder(0).class_embed.bias += 5
    assert (watched(model)["3"] != again["3"]).any()
    assert WatchedPictures([])(model) == {}


def test_a_run_hands_its_validation_pictures_to_tensorboard(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taker = Taker()
    monkeypatch.setattr(training, "service_writers", lambda *_, **__: [taker])
    cfg = LazyConfig.load(root / CONFIG)
    overrides = [*NARROW, *set_overrides(draw_set(tmp_path / "set"))]
    overrides += [f"train.output_dir={tmp_path / 'run'}", "train.max_iter=2", "train.eval_period=1"]
    cfg = LazyConfig.apply_overrides(cfg, overrides)
    training.resolve_run(cfg)
    training.Job(cfg, torch.device("cpu")).train()
    shown = [(iteration, name) for iteration, name, _ in taker.taken]
    assert shown == [(i, f"pictures/{n}") for i in (1, 2) for n in (1, 2, 3, 4)]

"""Which weights a model begins with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsedet.checkpoint import CLASS_HEAD, save_checkpoint
from sparsedet.resuming import initialize
from tests.modeling import small


@pytest.mark.parametrize("eval_only", [False, True])
def test_an_evaluation_takes_the_class_heads_of_the_file(tmp_path: Path, eval_only: bool) -> None:
    """Also where the config asks for new ones, as it still does after the training."""
    trained, model = (small.detector(small.PLAIN, seed=seed) for seed in (0, 1))
    path = tmp_path / "model_final.pth"
    save_checkpoint({"model": trained.state_dict()}, path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = SimpleNamespace(init_checkpoint=str(path), reinit_class_heads=True)
    initialize(model, settings, eval_only=eval_only)
    found = model.state_dict()
    heads = {name for name in found if CLASS_HEAD.fullmatch(name)}
    assert heads
    for name, tensor in trained.state_dict().items():
        new = name in heads and not eval_only
        assert torch.equal(found[name], before[name] if new else tensor), name

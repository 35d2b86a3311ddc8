"""Which weights a model begins with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsedet.checkpoint import CLASS_HEAD, CheckpointError, save_checkpoint
from sparsedet.resuming import initialize, require_weights
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


def test_only_a_run_with_a_checkpoint_needs_no_other_weights(tmp_path: Path) -> None:
    settings = SimpleNamespace(init_checkpoint="gone.pth", output_dir=str(tmp_path))
    for resume in (False, True, "auto"):
        with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
            require_weights(settings, resume=resume)
    (tmp_path / "checkpoint_0000010.pth").touch()
    require_weights(settings, resume=True)
    require_weights(settings, resume="auto")
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        require_weights(settings, resume=False)

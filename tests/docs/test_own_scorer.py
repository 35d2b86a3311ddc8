"""The scorer of docs/own_scorer.md: as long as the page says, and it learns."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sparsedet.config import LazyConfig, get_config, instantiate
from tests.house.test_readme import blocks
from tests.modeling import small


@pytest.fixture
def own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file that the page shows, where Python finds it."""
    (text,) = blocks(root / "docs/own_scorer.md", "python")
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield text
    sys.modules.pop("own", None)


def build(*overrides: str):
    cfg = get_config("quickstart")
    cfg.dataset.num_classes = small.NUM_CLASSES
    cfg.model.query_initializer.num_queries = 30
    target = "model.scorer._target_=own.OwnScorer"
    return instantiate(LazyConfig.apply_overrides(cfg, [target, *overrides]).model)


def test_it_is_as_long_as_the_page_says(own: str, root: Path):
    page = (root / "docs/own_scorer.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"Save these (\d+) lines as `own\.py`", page)
    assert len(own.splitlines()) == int(lines)


def test_the_loss_of_the_quickstart_teaches_it(own: str):
    model = build("model.scorer.hidden_dim=16")
    losses = model.train()(small.samples(((64, 96), (96, 64)), (2, 1)))
    losses["scorer/foreground"].backward()
    assert model.scorer.layers[1].out_features == 16
    assert all(each.grad is not None and each.grad.any() for each in model.scorer.parameters())


def test_without_a_loss_it_is_refused(own: str):
    with pytest.raises(ValueError, match=r"OwnScorer.+ForegroundLoss"):
        build("model.criterion.unmatched=[]")

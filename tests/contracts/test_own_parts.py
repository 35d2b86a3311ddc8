"""A part of one's own: one file outside of the package, and one override for each family."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sparsedet.config import ConfigError, LazyConfig, get_config, instantiate
from sparsedet.modeling import TokenSparseDetector
from tests.modeling import small

# What a person writes. Nothing in here is registered, and nothing of it is known to the package.
OWN = '''
import torch
from torch import nn

from sparsedet.modeling.parts import TokenTarget
from sparsedet.modeling.stages import EncoderOutput, Queries, TokenScores, TokenSelection


class NormScorer(nn.Module):
    needs_token_embedding = needs_head = False
    learns = None

    def __init__(self, embed_dim):
        super().__init__()
        self.embed_dim = embed_dim
        self.weight = nn.Parameter(torch.ones(embed_dim))

    def forward(self, features, heads, targets=None):
        return TokenScores((features.tokens * self.weight).norm(dim=-1), weighs=True)


class Depth(TokenTarget):
    """A kind of target of one's own."""


class TaughtScorer(NormScorer):
    learns = Depth


class DepthLoss:
    name, weight, teaches = "depth", 0.5, Depth

    def __call__(self, output, targets):
        return output.scores.logits.square().mean()


class FirstTokens(nn.Module):
    needs_scorer = False

    def __init__(self, share=0.5):
        super().__init__()
        self.share = share

    def check(self, assembly):
        if assembly.encoder.num_layers > 6:
            raise ValueError(f"FirstTokens goes with 6 layers, got {assembly.encoder.num_layers}.")

    def forward(self, scores, features, num_layers):
        count = int(self.share * min(features.num_valid))
        valid = (~features.padding_mask).to(torch.uint8)
        indices = valid.sort(dim=1, descending=True, stable=True).indices[:, :count]
        return (TokenSelection((count,) * len(indices), indices),) * num_layers


class LinearEncoder(nn.Module):
    def __init__(self, embed_dim, num_levels):
        super().__init__()
        self.embed_dim, self.num_levels, self.num_layers = embed_dim, num_levels, 1
        self.linear = nn.Linear(embed_dim, embed_dim)

    def forward(self, features, selections, scores, heads, *, aux=False):
        rows = self.linear(selections[0].gather(features.tokens))
        return EncoderOutput(features.with_tokens(selections[0].scatter(features.tokens, rows)))


class GridQueries(nn.Module):
    needs_proposals, reference_dim, provides_pos = False, 4, False

    def __init__(self, embed_dim, num_queries=30):
        super().__init__()
        self.embed_dim = embed_dim
        self.content = nn.Parameter(torch.randn(num_queries, embed_dim))

    def forward(self, memory, heads):
        batch = len(memory.image_sizes)
        boxes = memory.tokens.new_full((batch, len(self.content), 4), 0.3)
        boxes[..., 0] = torch.linspace(0.1, 0.9, len(self.content))
        return Queries(self.content.expand(batch, -1, -1), boxes, None), None


class Stripes(nn.Module):
    size_divisibility = 32

    def __init__(self):
        super().__init__()
        strides, channels = (4, 8, 16, 32), (32, 64, 128, 192)
        self.convs = nn.ModuleList(
            nn.Conv2d(3, c, s, s) for c, s in zip(channels, strides, strict=True)
        )

    def forward(self, images):
        return {f"res{i + 2}": conv(images) for i, conv in enumerate(self.convs)}


class SmallMemory:
    """A loss on what the encoder made: it trains no scorer."""

    name, weight = "small_memory", 0.1

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, output, targets):
        return self.factor * output.memory.tokens.square().mean()
'''

# The family's member in quickstart's model gives way to one's own by these words alone.
OVERRIDES = {
    "scorer": (
        "NormScorer",
        ["model.scorer._target_=own_parts.NormScorer", "model.criterion.unmatched=[]"],
    ),
    "scorer with a loss": (
        "TaughtScorer",
        [
            "model.scorer._target_=own_parts.TaughtScorer",
            "model.criterion.unmatched=[{_target_: own_parts.DepthLoss}]",
        ],
    ),
    "selector": (
        "FirstTokens",
        [
            "model.selector._target_=own_parts.FirstTokens",
            "model.scorer=null",
            "model.criterion.unmatched=[]",
        ],
    ),
    "encoder": ("LinearEncoder", ["model.encoder._target_=own_parts.LinearEncoder"]),
    "query_initializer": (
        "GridQueries",
        ["model.query_initializer._target_=own_parts.GridQueries"],
    ),
    "backbone": ("Stripes", ["model.backbone._target_=own_parts.Stripes"]),
}


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch):
    """The file of one's own, where Python finds it."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_parts", None)


def build(*overrides: str) -> TokenSparseDetector:
    cfg = get_config("quickstart.py")
    cfg.dataset.num_classes = small.NUM_CLASSES
    cfg.model.query_initializer.num_queries = 30
    return instantiate(LazyConfig.apply_overrides(cfg, overrides).model)


def train_once(model: TokenSparseDetector) -> dict[str, torch.Tensor]:
    losses = model.train()(small.samples(((64, 96), (96, 64)), (2, 1)))
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("family", OVERRIDES)
def test_a_part_of_ones_own_trains_by_an_override(own_parts, family):
    name, overrides = OVERRIDES[family]
    if name == "LinearEncoder":  # which has one layer
        overrides = [*overrides, "model.selector.layer_ratios=null"]
    model = build(*overrides)
    part = getattr(model, family.split()[0])
    assert type(part).__name__ == name
    losses = train_once(model)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.any() for p in part.parameters())
    with torch.no_grad():
        found = model.eval()(small.samples(((64, 96),), (1,)))
    assert len(found[0]["instances"])


def test_a_loss_on_anything_else_is_named_by_itself(own_parts):
    """Beside the loss of the scorer, by the override that adds an item to the list."""
    plain, term = build(), "{_target_: own_parts.SmallMemory, factor: 3.0}"
    foreground = "{_target_: ForegroundLoss, weight: 1.5}"
    model = build(f"model.criterion.unmatched=[{foreground}, {term}]")
    losses = train_once(model)
    assert set(losses) == {*train_once(plain), "small_memory"}
    batch = model.preprocess(small.samples(((64, 96), (96, 64)), (2, 1)))
    torch.manual_seed(1)
    output = model.detect(batch.images, batch.image_sizes, batch.targets)
    torch.manual_seed(1)
    own = model.criterion(output, batch.targets)["small_memory"]
    torch.testing.assert_close(own, 0.1 * 3 * output.memory.tokens.square().mean())
    dense = ("model.scorer=null", "model.selector._target_=DenseSelector")
    assert "small_memory" in train_once(build(*dense, f"model.criterion.unmatched=[{term}]"))


def test_own_parts_check_themselves(own_parts):
    _, overrides = OVERRIDES["selector"]
    with pytest.raises(ConfigError, match=r"FirstTokens goes with 6 layers, got 7"):
        build(*overrides, "model.encoder.num_layers=7")


def test_a_check_that_is_broken_names_its_part(own_parts, monkeypatch):
    import own_parts as module  # pyright: ignore[reportMissingImports]

    _, overrides = OVERRIDES["selector"]
    for check in (lambda self, assembly: assembly.nothing, lambda self: None, 5):
        monkeypatch.setattr(module.FirstTokens, "check", check)
        with pytest.raises(ConfigError, match=r"FirstTokens\.check, .* fails with \w+Error: "):
            build(*overrides)


def test_terms_whose_attributes_are_of_another_kind(own_parts, monkeypatch):
    import own_parts as module  # pyright: ignore[reportMissingImports]

    term = "model.criterion.unmatched=[{_target_: own_parts.SmallMemory}]"
    for name, value in (("weight", "x"), ("weight", None), ("requires", "token_mass")):
        with monkeypatch.context() as patch:
            patch.setattr(module.SmallMemory, name, value, raising=False)
            with pytest.raises(ConfigError, match=rf"SmallMemory\.{name} must be a .*{value!r}"):
                build(term)
    monkeypatch.setattr(module.NormScorer, "learns", "Depth")
    with pytest.raises(ConfigError, match=r"NormScorer\.learns must be a subclass"):
        build("model.scorer._target_=own_parts.NormScorer", "model.criterion.unmatched=[]")


def test_a_kind_of_target_that_nobody_teaches_or_learns_is_refused(own_parts):
    _, (scorer, loss) = OVERRIDES["scorer with a loss"]
    with pytest.raises(
        ConfigError,
        match=r"TaughtScorer is trained by a term whose teaches is Depth, got unmatched terms "
        r"\['ForegroundLoss'\]",
    ):
        build(scorer)
    with pytest.raises(
        ConfigError,
        match=r"DepthLoss trains a scorer whose learns is Depth, and the scorer is NormScorer\. "
        r"Set model\.criterion\.unmatched=\[\]\.",
    ):
        build("model.scorer._target_=own_parts.NormScorer", loss)


def test_a_kind_that_is_no_type_is_refused(own_parts):
    import own_parts as module  # pyright: ignore[reportMissingImports]

    module.DepthLoss.teaches = "NormScorer"
    _, (_, loss) = OVERRIDES["scorer with a loss"]
    with pytest.raises(
        ConfigError, match=r"DepthLoss\.teaches must be a subclass of .*TokenTarget"
    ):
        build("model.scorer._target_=own_parts.NormScorer", loss)

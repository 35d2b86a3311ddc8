"""Small detectors that glance and look, for the tests."""

from __future__ import annotations

import torch

from sparsedet.modeling import (
    DAMPredictor,
    DecoderAttentionLoss,
    ForegroundLoss,
    ForegroundScorer,
    GlanceAndLook,
    ObjectnessScorer,
    OracleScorer,
    PollScorer,
    RandomScorer,
    SalienceLoss,
    SetCriterion,
    TokenSparseDetector,
)
from tests.modeling import small

FACTOR, TILE, HALO = 4, 64, 16
STRIDES = (8, 16, 32, 64, 128, 256)
SIZES = ((200, 300), (260, 190))  # no multiples of a tile
EMBED = small.EMBED_DIM
LEVELS = dict(num_levels=6, levels=((2, 3, 4, 5), (0, 1, 2, 3, 4, 5)))


def foreground(**options) -> dict:
    return dict(scorer=ForegroundScorer(EMBED, 4), term=ForegroundLoss(weight=1.0))


# every scorer with what trains it, of the tokens of the glance
SCORERS = {
    "foreground": foreground,
    "salience": lambda: dict(scorer=ForegroundScorer(EMBED, 4), term=SalienceLoss(weight=1.0)),
    "unsupervised": lambda: dict(scorer=ForegroundScorer(EMBED, 4, supervised=False)),
    "dam": lambda: dict(scorer=DAMPredictor(EMBED), term=DecoderAttentionLoss(weight=1.0)),
    "objectness": lambda: dict(scorer=ObjectnessScorer()),
    "poll": lambda: dict(scorer=PollScorer(EMBED)),
    "oracle": lambda: dict(scorer=OracleScorer()),
    "random": lambda: dict(scorer=RandomScorer()),
}


def parts(name: str, *, term=None, selector=None, look_ratio=0.3, **options) -> dict:
    """Those of a named system with regions; ``options`` are of the regions or of the system."""
    taken = small.arguments_of(GlanceAndLook)
    own = {key: value for key, value in options.items() if key not in taken}
    given = small.parts(small.NAMED[name], **{**LEVELS, **own})
    criterion = given["criterion"]
    terms = [] if term is None else [term]
    for each in criterion.unmatched:
        if isinstance(each, ForegroundLoss):
            each.size_ranges = ((-1.0, 64.0),) * len(STRIDES)
    given["criterion"] = SetCriterion(
        criterion.matcher, criterion.matched, unmatched=criterion.unmatched, regions=terms
    )
    ratio = look_ratio if selector is None else None
    options = {key: value for key, value in options.items() if key in taken}
    options = {"tile": TILE, "halo": HALO, **options}
    regions = GlanceAndLook(FACTOR, look_ratio=ratio, selector=selector, **options)
    return {**given, "num_levels": len(STRIDES), "regions": regions}


def detector(name: str = "dino", *, seed: int = 0, **options) -> TokenSparseDetector:
    return small.randomize(TokenSparseDetector(**parts(name, **options)), seed)


def look(model: TokenSparseDetector, sizes=SIZES, seeds=(0, 1), targets=None):
    batch = model.preprocess(small.samples(sizes, (2,) * len(sizes), seeds))
    with torch.no_grad():
        return model.see(batch.images, batch.image_sizes, targets), batch

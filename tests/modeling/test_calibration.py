"""How the scores of a set lie, as images are added to it."""

from __future__ import annotations

import pytest
import torch

from sparsedet.modeling.selection.calibration import ScoreCurve

PADDING = torch.tensor([[False, False, False, False, True]])


def _add(curve: ScoreCurve, logit: float, count: int, *, fading: bool) -> float:
    """Add images whose tokens all score alike; the share above 0 that is known then."""
    padding = PADDING.expand(count, -1)
    curve.add(torch.full(padding.shape, logit), padding, fading=fading)
    return curve.shares[len(curve.shares) // 2].item()


@pytest.mark.parametrize("fading", [False, True])
def test_the_first_images_count_alike(fading):
    curve = ScoreCurve()
    assert _add(curve, 5.0, 3, fading=fading) == 1
    assert _add(curve, -5.0, 1, fading=fading) == pytest.approx(3 / 4)
    assert _add(curve, -5.0, 4, fading=fading) == pytest.approx(3 / 8)
    assert curve.num_images == 8


def test_old_batches_fade_where_scores_are_still_trained():
    curve = ScoreCurve()
    assert _add(curve, -5.0, 999, fading=True) == 0
    for batches in range(1, 51):
        share = _add(curve, 5.0, 1, fading=True)
        assert share == pytest.approx(1 - 0.98**batches, abs=1e-4)


def test_no_image_fades_in_a_calibration():
    curve = ScoreCurve()
    _add(curve, -5.0, 999, fading=False)
    assert _add(curve, 5.0, 1, fading=False) == pytest.approx(1 / 1000, abs=1e-6)

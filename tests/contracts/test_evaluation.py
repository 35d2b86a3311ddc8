"""Whole models in evaluation: batches, their order, and what comes out."""

from __future__ import annotations

import pytest
import torch

from sparsedet.modeling import TimmBackbone
from tests.modeling import small

NAMED = pytest.mark.parametrize("name", small.NAMED)


def whole_model(name: str):
    """A small detector with a backbone that sees padding, as backbones do."""
    arguments = small.parts(small.NAMED[name])
    channels = {"res3": 48, "res4": 192, "res5": 96}
    arguments["backbone"] = TimmBackbone("test_resnet")
    arguments["neck"] = small.ChannelMapper(channels, (8, 16, 32), embed_dim=small.EMBED_DIM)
    return small.randomize(small.TokenSparseDetector(**arguments)).eval()


@torch.no_grad()
def results(model, batch) -> list[torch.Tensor]:
    """One row per detection: box, score, class. Not by score: equal scores have no order."""
    rows = []
    for each in model(batch):
        found = each["instances"]
        place = 1000 * found.pred_classes + found.pred_boxes.tensor.sum(1)
        columns = (found.pred_boxes.tensor, found.scores[:, None], found.pred_classes[:, None])
        rows.append(torch.cat(columns, dim=1)[place.argsort()])
    return rows


@NAMED
def test_results_do_not_depend_on_the_batch_size(name):
    model = whole_model(name)
    batch = small.samples([(70, 100)] * 4, (1, 2, 0, 3))
    alone = [row for sample in batch for row in results(model, [sample])]
    for size in (2, 3, 4):
        split = [batch[i : i + size] for i in range(0, 4, size)]
        for got, expected in zip([r for b in split for r in results(model, b)], alone, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


@NAMED
def test_the_order_of_a_batch_is_the_order_of_the_results(name):
    model = whole_model(name)
    batch = small.samples([(70, 100), (50, 40), (96, 64)], (1, 2, 0))
    order = [2, 0, 1]
    expected, got = results(model, batch), results(model, [batch[i] for i in order])
    for place, image in enumerate(order):
        torch.testing.assert_close(got[place], expected[image], atol=1e-3, rtol=1e-4)


@NAMED
def test_detections_lie_in_the_original_image(name):
    model = whole_model(name)
    batch = small.samples([(70, 100), (50, 40)], (1, 2))
    with torch.no_grad():
        found = model(batch)
    for sample, result in zip(batch, found, strict=True):
        instances = result["instances"]
        assert instances.image_size == (sample["height"], sample["width"])
        assert 0 < len(instances) <= model.max_detections
        low, high = instances.pred_boxes.tensor.split(2, dim=1)
        assert (low >= 0).all() and (high >= low).all()
        assert (high <= torch.tensor([sample["width"], sample["height"]])).all()
        assert (instances.scores.diff() <= 0).all()
        assert 0 < result["keep_ratio"] <= 1


@NAMED
def test_evaluation_needs_no_targets(name):
    model = whole_model(name)
    batch = small.samples([(70, 100)], (1,))
    with_targets = results(model, batch)
    del batch[0]["instances"]
    assert torch.equal(results(model, batch)[0], with_targets[0])


def test_the_oracle_says_that_it_needs_targets():
    model = small.detector(small.Combination("OracleScorer", selector="TopKSelector")).eval()
    batch = small.samples([(70, 100)], (1,))
    del batch[0]["instances"]
    with pytest.raises(ValueError, match="OracleScorer needs targets"):
        model(batch)

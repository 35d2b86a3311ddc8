"""Recall of the tiles that a model looks at, and AP by the sizes of its input."""

import math

import numpy as np
import pytest
import torch

from sparsedet.data import open_dataset
from sparsedet.evaluation import COCOEvaluator, evaluate
from sparsedet.evaluation.loop import main_metrics
from sparsedet.evaluation.rules import make_rules
from sparsedet.evaluation.tiles import LookedTiles, tile_recall
from sparsedet.structures import Boxes, Instances
from tests.evaluation.test_coco import HUGE, answer, write

RULES = make_rules((10**2, 30**2))
TILES = [[x, y, min(x + 64, 160), min(y + 64, 160)] for y in (0, 64, 128) for x in (0, 64, 128)]


def tiles(*looked):
    """Those of a picture of 160 x 160."""
    mask = torch.zeros(9, dtype=torch.bool)
    mask[list(looked)] = True
    return Instances((160, 160), boxes=Boxes(TILES), scores=torch.zeros(9), looked=mask)


def placed(looked, centers, areas=None):
    area = np.full(len(centers), 50.0) if areas is None else np.array(areas)
    return LookedTiles.of(tiles(*looked), np.array(centers, dtype=float).reshape(-1, 2), area)


def test_an_object_is_in_the_tile_of_its_center():
    centers = [[0, 0], [63.9, 63.9], [64, 63.9], [63.9, 64], [160, 160], [-3, 70], [170, 90]]
    assert placed([], centers).tile.tolist() == [0, 0, 1, 3, 8, 3, 5]


def test_recall_beside_the_most_and_the_least_to_expect():
    """Two of nine tiles: 1 of 6 objects; the best two tiles hold 5, and chance finds 2 in 9."""
    busy = placed([0, 8], [[10, 10], [70, 10], [70, 20], [80, 30], [10, 70], [20, 70]])
    empty = placed([0, 1, 2, 3], [])
    found = tile_recall([busy, empty], RULES)
    assert found["looked"] == pytest.approx(100 * (2 / 9 + 4 / 9) / 2)
    assert found["recall"] == pytest.approx(100 / 6)
    assert found["oracle"] == pytest.approx(100 * 5 / 6)
    assert found["random"] == pytest.approx(100 * 2 / 9)


def test_every_picture_has_as_many_tiles_as_it_was_looked_at():
    """The oracle of one picture may not take the tiles of another."""
    one = placed([8], [[10, 10], [70, 10], [70, 20]])
    other = placed([0, 1, 2], [[10, 10]])
    found = tile_recall([one, other], RULES)
    assert found["recall"] == 25 and found["oracle"] == 75
    assert found["random"] == pytest.approx(100 * (3 * 1 / 9 + 1 * 3 / 9) / 4)


def test_sizes_are_apart():
    found = tile_recall([placed([0], [[10, 10], [70, 10], [80, 20]], [50, 200, 1000])], RULES)
    assert [found[f"recall-{size}"] for size in RULES.area_names] == [100, 0, 0]
    assert [found[f"oracle-{size}"] for size in RULES.area_names] == [100, 100, 100]
    assert math.isnan(tile_recall([placed([0], [[10, 10]], [50])], RULES)["recall-large"])


def evaluated(tmp_path, outputs, images=None, **arguments):
    """Evaluate three pictures of 160 x 160: with 3 objects, 1 and none."""
    evaluator = COCOEvaluator(
        open_dataset(write(tmp_path / "a.json")), area_bounds=(10**2, 30**2), **arguments
    )
    shown = [None] * 3 if images is None else images
    for number, (output, image) in enumerate(zip(outputs, shown, strict=True), 1):
        sample = {"image_id": HUGE + number} | ({} if image is None else {"image": image})
        evaluator.process([sample], [output])
    return evaluator.evaluate()


PERFECT = (
    ([[10, 10, 8, 8], [30, 20, 40, 30], [50, 5, 20, 20]], [1, 2, 1]),
    ([[0, 0, 100, 80]], [2]),
    ([], []),
)


def test_the_evaluator_tells_where_a_model_looked(tmp_path):
    """Centers: (14, 14), (50, 35) and (60, 15) in the first tile, (50, 40) as well."""
    looked = ([0], [1], [0, 1, 2])
    outputs = [
        {**answer(*found), "tiles": tiles(*own)} for found, own in zip(PERFECT, looked, strict=True)
    ]
    results = evaluated(tmp_path, outputs)
    assert results["tiles"]["recall"] == 75 and results["tiles"]["oracle"] == 100
    assert results["tiles"]["recall-large"] == 50
    assert results["tiles"]["looked"] == pytest.approx(100 * (1 + 1 + 3) / 27)
    shown = main_metrics(results)
    assert shown["tile_recall"] == "75.0" and shown["looked"] == "18.5"
    assert "tiles" not in evaluated(tmp_path, [answer(*found) for found in PERFECT])


def test_tiles_reach_the_evaluator_from_the_loop(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, samples):
            return [
                {**answer(*PERFECT[sample["image_id"] - HUGE - 1]), "tiles": tiles(0)}
                for sample in samples
            ]

    evaluator = COCOEvaluator(open_dataset(write(tmp_path / "a.json")))
    loader = [[{"image_id": HUGE + number} for number in (1, 2)], [{"image_id": HUGE + 3}]]
    assert evaluate(Model(), loader, evaluator)["tiles"]["recall"] == 100


def test_sizes_of_the_input_are_those_of_the_resized_picture(tmp_path):
    """In a quarter of the area, nearly, the box of 20 x 20 is small as that of 8 x 8 is."""
    outputs = [answer(*found) for found in PERFECT]
    outputs[0] = answer(*([each[1:] for each in PERFECT[0]]))  # the box of 8 x 8 is not found
    results = evaluated(tmp_path, outputs, [torch.zeros(3, 76, 76)] * 3)
    original, at_input = results["bbox"], results["bbox_at_input"]
    assert [original[name] for name in ("ARs", "ARm", "ARl")] == [0, 100, 100]
    assert [at_input[name] for name in ("ARs", "ARm", "ARl")] == [50, 100, 100]
    assert at_input["APs"] == pytest.approx(50, abs=1)


def test_only_other_sizes_are_told(tmp_path):
    outputs = [answer(*found) for found in PERFECT]
    same = [torch.zeros(3, 160, 160)] * 3
    assert "bbox_at_input" not in evaluated(tmp_path, outputs, same)
    assert "bbox_at_input" not in evaluated(tmp_path, outputs)
    one = [*same[:2], torch.zeros(3, 80, 80)]
    assert "bbox_at_input" in evaluated(tmp_path, outputs, one)

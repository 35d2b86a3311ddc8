"""Fields, selection and the parts of detectron2's interface that its tools use."""

import copy
import pickle

import numpy as np
import pytest
import torch

from sparsedet.structures import Boxes, Instances


def example():
    return Instances(
        (40, 60),
        pred_boxes=Boxes([[0, 0, 10, 20], [5, 5, 5, 9], [50, 30, 80, 90]]),
        scores=torch.tensor([0.9, 0.5, 0.1]),
        names=["a", "b", "c"],
    )


def test_attributes_and_dictionary_are_one():
    found = example()
    found.pred_classes = torch.tensor([1, 0, 2])
    assert found.has("pred_classes")
    assert found.get("pred_classes") is found.pred_classes
    assert set(found.get_fields()) == {"pred_boxes", "scores", "names", "pred_classes"}
    found.remove("names")
    assert not found.has("names")
    with pytest.raises(AttributeError, match="names"):
        _ = found.names


def test_length_must_agree():
    with pytest.raises(ValueError, match=r"Instances\.scores must have length 3"):
        example().scores = torch.zeros(2)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (torch.tensor([True, False, True]), ["a", "c"]),
        (torch.tensor([2, 0]), ["c", "a"]),
        (slice(1, None), ["b", "c"]),
        (-1, ["c"]),
        (0, ["a"]),
    ],
)
def test_selection_covers_all_fields(item, expected):
    chosen = example()[item]
    assert chosen.names == expected
    assert len(chosen.pred_boxes) == len(chosen.scores) == len(expected)
    assert chosen.image_size == (40, 60)


def test_index_out_of_range():
    with pytest.raises(IndexError):
        example()[3]


def test_cat_restores_what_was_split():
    found = example()
    joined = Instances.cat([found[:1], found[1:]])
    assert torch.equal(joined.pred_boxes.tensor, found.pred_boxes.tensor)
    assert joined.names == found.names
    with pytest.raises(ValueError, match="equal image sizes"):
        Instances.cat([found, Instances((1, 1))])


def test_to_moves_tensors_and_boxes():
    moved = example().to(torch.float64)
    assert moved.scores.dtype == moved.pred_boxes.tensor.dtype == torch.float64
    assert moved.names == ["a", "b", "c"]


def test_copies_and_pickles():
    found = example()
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(twin.scores, found.scores)
        assert twin.image_size == found.image_size


def test_what_detectron2_does_to_results():
    found = example()
    results = Instances((80, 60), **found.get_fields())
    boxes = results.pred_boxes
    boxes.scale(1.0, 2.0)
    boxes.clip(results.image_size)
    results = results[boxes.nonempty()]
    assert results.pred_boxes.tensor.tolist() == [[0, 0, 10, 40], [50, 60, 60, 80]]
    assert np.asarray(results.pred_boxes).shape == (2, 4)
    assert results.pred_boxes.area().tolist() == [400, 200]


def test_boxes_of_nothing():
    assert Boxes([]).tensor.shape == (0, 4)
    assert len(Boxes(torch.zeros(0, 4))) == 0
    assert Boxes.cat([]).tensor.shape == (0, 4)
    with pytest.raises(ValueError, match="must be"):
        Boxes(torch.zeros(3, 5))

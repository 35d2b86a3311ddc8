"""The evaluation loop: modes, counts and means."""

import pytest
import torch
from torch import nn

from sparsedet.evaluation import evaluate
from sparsedet.structures import Boxes, Instances


class Recorder:
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [
            (i["image_id"], o["instances"].image_size) for i, o in zip(inputs, outputs, strict=True)
        ]

    def evaluate(self):
        return {"bbox": {"AP": 0.5}}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Dropout()
        self.linear = nn.Linear(1, 1)
        self.modes = set()

    def forward(self, samples):
        self.modes.add((self.training, torch.is_inference_mode_enabled()))
        size = (2, 3)
        return [
            {
                "instances": Instances(
                    size, pred_boxes=Boxes([]), scores=self.linear.weight[:0, 0]
                ),
                "keep_ratio": 0.1 * sample["image_id"],
            }
            for sample in samples
        ]


def batches():
    return [[{"image_id": 1}, {"image_id": 2}], [{"image_id": 3}], [{"image_id": 4}]]


def test_results_and_means():
    recorder, ticks = Recorder(), []
    results = evaluate(Model(), batches(), recorder, progress=ticks.append)
    assert results["bbox"] == {"AP": 0.5}
    assert results["num_images"] == 4
    assert results["keep_ratio"] == pytest.approx(0.25)
    assert results["seconds_per_image"] > 0
    assert [image_id for image_id, _ in recorder.seen] == [1, 2, 3, 4]
    assert ticks == [2, 1, 1]


@pytest.mark.parametrize(
    ("seconds", "per_image"),
    [
        pytest.param([90, 50, 1], 1.0, id="the first two batches are a warm-up"),
        pytest.param([90, 60], 50.0, id="unless there are no others"),
    ],
)
def test_seconds_are_those_after_the_warm_up(monkeypatch, seconds, per_image):
    clock = iter([time for each in seconds for time in (0.0, float(each))])
    monkeypatch.setattr("sparsedet.evaluation.loop.time.perf_counter", lambda: next(clock))
    results = evaluate(Model(), batches()[: len(seconds)], Recorder())
    assert results["seconds_per_image"] == pytest.approx(per_image)


def test_details_of_the_evaluator_are_kept():
    recorder = Recorder()
    assert "details" not in evaluate(Model(), batches(), recorder)  # those of others have none
    recorder.details = {"unit": "percent"}
    assert evaluate(Model(), batches(), recorder)["details"] == {"unit": "percent"}


def test_an_evaluator_that_answers_on_the_main_process_alone(monkeypatch):
    """As those of detectron2, which give None on the others."""
    monkeypatch.setattr(Recorder, "evaluate", lambda self: None)
    results = evaluate(Model(), batches(), Recorder())
    assert results["num_images"] == 4 and "bbox" not in results


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_put_back(training):
    model = Model().train(training)
    model.frozen.eval()
    evaluate(model, batches(), Recorder())
    assert model.modes == {(False, True)}
    assert model.training is training
    assert not model.frozen.training


def test_nothing_to_evaluate():
    results = evaluate(Model(), [], Recorder())
    assert results["num_images"] == 0
    assert results["keep_ratio"] is None
    assert results["seconds_per_image"] is None

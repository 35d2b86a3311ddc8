"""`sparsedet benchmark`: what each mode times is what it says, and figures are written."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsedet.benchmark import (
    cases,
    evaluation,
    execution,
    gpu_op,
    memory,
    model,
    modes,
    op,
    train_step,
)
from sparsedet.cli import benchmark
from sparsedet.layers import has_compiled_kernel, ms_deform_attn

QUICKSTART = "configs/quickstart.py"
SMALL = ("model.encoder.feedforward_dim=64", "model.decoder.num_layers=1")
BRIEF = ("--seconds", "0", "--rounds", "2", "--threads", "1")


# --- what is compared with ours -------------------------------------------------------------------


def test_grid_sample_form_is_the_same_model():
    case = cases.Case(QUICKSTART, SMALL, image_size=(64, 96))
    twin = replace(case, form=cases.GRID_SAMPLE)
    ours, theirs = cases.load_model(case), cases.load_model(twin)
    assert any(type(each).__name__ == "GridSampleAttention" for each in theirs.modules())
    images, sizes = cases.noise(case, ours)
    with torch.no_grad():
        mine, other = ours.detect(images, sizes), theirs.detect(images, sizes)
    assert_close(other.memory.tokens, mine.memory.tokens, rtol=1e-4, atol=1e-4)
    assert_close(other.decoder[-1].boxes, mine.decoder[-1].boxes, rtol=1e-3, atol=1e-4)


class Peer(nn.Module):
    """Somebody's detector."""

    def forward(self, images: Tensor) -> Tensor:
        """Images to something."""
        assert images.shape == (1, 3, 64, 96)
        return images.mean()


# --- cases ----------------------------------------------------------------------------------------


def parsed(*words: str) -> list[Any]:
    return cases.product(modes.parser("model").parse_intermixed_args(words))


def test_product_of_everything():
    found = parsed(
        *SMALL, "--config-file", QUICKSTART, "--variant", "", "--variant",
        "model.selector.layer_ratios=[1.0,1.0] model.encoder.num_objects=9",
        "--keep-ratio", "dense", "0.2", "--image-size", "64x96", "96x64",
        "--dtype", "float32", "bfloat16", "--reference",
    )  # fmt: skip
    assert len({(case.name, case.image_size) for case in found}) == len(found) == 2**5
    assert {case.image_size for case in found} == {(64, 96), (96, 64)}
    assert all(case.overrides[:2] == SMALL for case in found)
    assert found[0].name == "quickstart, dense"
    assert all(case.prepared == (case.form == "sparsedet") for case in found)
    names = [case.name for case in found]
    assert (
        "quickstart, keep 0.2, model.selector.layer_ratios=[1.0,1.0], model.encoder.num_objects=9, "
        "grid_sample, bfloat16" in names
    )


def test_a_config_without_a_ratio_is_there_once():
    dino = "projects/dino/configs/dino_r50_4scale_12ep.py"
    found = parsed("--config-file", dino, QUICKSTART, "--keep-ratio", "0.1", "0.2")
    assert [case.keep for case in found] == ["config", "0.1", "0.2"]


@pytest.mark.parametrize("ratio", ["0.3", "0.05", "dense"])
def test_keep_ratio_is_the_mean_over_the_layers(ratio):
    counts: dict[str, Any] = {}
    case = cases.Case(QUICKSTART, SMALL, keep=ratio, image_size=(160, 160))
    with torch.inference_mode():
        model.detect_call(case, counts)()
    wanted = counts["tokens"] * (1.0 if ratio == "dense" else float(ratio))
    assert counts["kept_tokens"] == pytest.approx(wanted, abs=1.5)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ("0", "--keep-ratio 0: TopKSelector.keep_ratio must be in (0, 1], got 0.0"),
        ("0.9", "--keep-ratio 0.9: TopKSelector.keep_ratio must be at most 0.75"),
        ("half", "--keep-ratio must be dense, config or a number, got 'half'"),
    ],
)
def test_keep_ratio_that_cannot_be_had(ratio, message, capsys):
    assert benchmark.main(["model", "--config-file", QUICKSTART, "--keep-ratio", ratio]) == 2
    assert message in capsys.readouterr().err


def test_scores_of_objects_are_in_blobs():
    """Neighbours of a kept token are kept too, unlike those of random scores."""
    detector = cases.load_model(cases.Case(QUICKSTART, SMALL))
    maps = [torch.zeros(1, 64, 160 // stride, 160 // stride) for stride in detector.neck.strides]
    features = detector.embed(maps, [(160, 160)])
    scores = cases.object_scores(features)
    assert scores.shape == (1, features.num_tokens) and torch.equal(
        scores, cases.object_scores(features)
    )
    finest = features.split_levels(scores)[0].view(40, 40)
    kept = finest >= finest.flatten().topk(160).values[-1]
    beside = (kept[:, 1:] & kept[:, :-1]).sum() / kept.sum()
    assert beside > 0.5


def test_scorer_keeps_its_gradient_under_given_scores():
    detector = cases.build_model(cases.Case(QUICKSTART, SMALL)).train()
    maps = [torch.randn(1, 64, 160 // stride, 160 // stride) for stride in detector.neck.strides]
    features = detector.embed(maps, [(160, 160)])
    logits = detector.scorer(features, detector.heads).logits
    assert_close(logits, cases.object_scores(features))
    logits.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in detector.scorer.parameters())


# --- running --------------------------------------------------------------------------------------


def test_a_case_that_fails_leaves_the_others(capsys):
    good, bad = cases.Case("good"), cases.Case("bad")

    def make(case: Any) -> Any:
        def work() -> dict[str, float]:
            if case is bad:
                raise torch.OutOfMemoryError("no room\nmore about it")
            return {"a": 1.0, "b": 2.0}

        return work

    turns = argparse.Namespace(seconds=0, rounds=2, warm_up=1)
    timings, errors = execution.time_cases([bad, good], make, turns)
    assert timings == {"good": [{"a": 1.0, "b": 2.0}] * 2}
    assert errors == {"bad": "OutOfMemoryError: no room"}
    rows = [execution.timing_row(case, [bad, good], timings, errors) for case in (bad, good)]
    assert rows[0]["error"] == "OutOfMemoryError: no room" and "ms" not in rows[0]
    assert rows[1]["ms"]["median"] == 3.0 and rows[1]["against"] == "good"
    assert "no room" in capsys.readouterr().err


def test_peak_memory_of_a_process():
    peak = memory.process_peak(fill, 200)
    assert peak["peak_mb"] - peak["before_mb"] == pytest.approx(200, abs=20)
    with pytest.raises(RuntimeError, match="ValueError: no"):
        memory.process_peak(refuse)


def fill(megabytes: int) -> Any:
    return lambda: torch.ones(megabytes * 250_000)


def refuse() -> Any:
    raise ValueError("no")


# --- modes ----------------------------------------------------------------------------------------


def check_timing(timing: dict[str, Any]) -> None:
    assert 0 < timing["p10"] <= timing["median"] <= timing["p90"]


def test_model_mode(measure, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peer", sys.modules[__name__])
    result = measure(
        "model", *SMALL, "--config-file", QUICKSTART, "--image-size", "64x96",
        "--keep-ratio", "dense", "0.2", "--reference", "--no-memory", "--peer", "peer:Peer", *BRIEF,
    )  # fmt: skip
    names = [row["name"] for row in result["rows"]]
    assert names == [
        "quickstart, dense",
        "quickstart, dense, grid_sample",
        "quickstart, keep 0.2",
        "quickstart, keep 0.2, grid_sample",
        "peer:Peer",
    ]
    dense, _, sparse, _, peer = result["rows"]
    stages = ["backbone", "neck", "scorer", "encoder", "query_initializer", "decoder"]
    for row in result["rows"]:
        check_timing(row["ms"])
        assert row["speedup"] > 0 and row["against"] == names[0]
    assert list(sparse["parts"]) == stages and peer["parts"] == {}
    assert sparse["ms"]["median"] > max(part["median"] for part in sparse["parts"].values())
    assert sparse["gflops"]["encoder"] < dense["gflops"]["encoder"]
    assert dense["speedup"] == 1 and "speedup_over_grid_sample" in sparse
    assert sparse["kept_tokens"] < dense["kept_tokens"] == dense["tokens"] and "tokens" not in peer
    facts = result["environment"]
    assert facts["threads"] == 1 and facts["allocator"] and facts["cpu_capability"]
    assert "peak MB" not in capsys.readouterr().out


def test_batches_have_a_column_of_images_a_second():
    """Named as in the table of Sparse DETR; of one image a pass, the milliseconds say it."""
    timing = {"median": 200.0, "p10": 190.0, "p90": 210.0}
    rows = [
        {"name": "a", "image_size": [64, 96], "batch": batch, "ms": timing} for batch in (1, 4, 8)
    ]
    head, *lines = model.table({"rows": rows})
    assert head[3:6] == ["ms per image (p10..p90)", "B4FPS", "B8FPS"]
    assert [line[4:6] for line in lines] == [["", ""], ["20.0", ""], ["", "40.0"]]
    failed = {"name": "b", "image_size": [64, 96], "batch": 4, "error": "no memory"}
    assert model.table({"rows": [rows[1], failed]})[2][3:5] == ["failed", ""]
    assert not any("FPS" in name for name in model.table({"rows": rows[:1]})[0])


def test_encoder_mode_compares_time_and_flops(measure):
    result = measure(
        "encoder", *SMALL, "--config-file", QUICKSTART, "--image-size", "64x96",
        "--keep-ratio", "dense", "0.2", *BRIEF,
    )  # fmt: skip
    dense, sparse = result["rows"]
    assert dense["time_ratio"] == dense["flop_ratio"] == 1
    assert sparse["flop_ratio"] == pytest.approx(sparse["gflops"] / dense["gflops"])
    assert sparse["time_over_flops"] == pytest.approx(sparse["time_ratio"] / sparse["flop_ratio"])


def test_train_step_mode(measure):
    result = measure(
        "train-step", *SMALL, "--config-file", QUICKSTART, "--image-size", "64x96",
        "--keep-ratio", "0.2", "--batch", "2", "--dtype", "bfloat16", "--no-memory", *BRIEF,
    )  # fmt: skip
    (row,) = result["rows"]
    assert list(row["parts"]) == list(train_step.PARTS)
    assert row["name"].endswith("bfloat16 autocast")


def test_train_step_trains():
    step = train_step.Step(cases.Case(QUICKSTART, SMALL, image_size=(64, 96), batch=2))
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    step()
    moved = {name for name, p in step.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} >= {"backbone", "encoder", "decoder", "scorer"}


def test_dataloader_mode(measure):
    result = measure(
        "dataloader", "dataset.short_sides=[64]", "--config-file", QUICKSTART,
        "--max-images", "3", "--shapes-size", "64x96", "--batch", "2", *BRIEF,
    )  # fmt: skip
    (row,) = result["rows"]
    check_timing(row["ms"])
    assert row["ms"]["passes"] == 2
    slowest = 2e3 / (2 * row["ms"]["p90"])
    assert row["images_per_second"] == row["images_per_second_and_core"] > slowest


def test_eval_mode(measure, monkeypatch):
    slow = evaluation.evaluate

    def paced(detector: Any, loader: Any, evaluator: Any) -> dict[str, Any]:
        detector.register_forward_pre_hook(lambda *_: time.sleep(0.2))
        return slow(detector, loader, evaluator)

    monkeypatch.setattr(evaluation, "evaluate", paced)
    result = measure(
        "eval", *SMALL, "dataset.test_short_side=64", "--config-file", QUICKSTART,
        "--shapes-size", "64x96", "--max-images", "3", *BRIEF,
    )  # fmt: skip
    assert [row["keep"] for row in result["rows"]] == ["dense", "config"]
    for row in result["rows"]:
        assert row["images"] == 3
        parts = row["ms_per_image"]
        assert row["images_per_second"] == pytest.approx(1e3 / sum(parts.values()), rel=1e-6)
        assert parts["model"] > 200 / 3 > parts["reading"] > 0 < parts["evaluator"]


@pytest.mark.skipif(not has_compiled_kernel(), reason="needs the compiled CPU kernels")
def test_op_mode(measure):
    words = ("op", "--image-size", "64x96", "--scaling", "2", "--no-memory")
    result = measure(*words, *BRIEF)
    assert result["tokens"] == 128 == result["rows"][0]["num_queries"]
    assert [row["direction"] for row in result["rows"]] == ["forward", "backward"] * 4
    for row in result["rows"]:
        for timing in row["ms"].values():
            check_timing(timing)
        others = {"sparsedet, token-major", "grid_sample"}
        assert row["speedup"].keys() == others
        assert row["ms"].keys() == others | {"sparsedet", "sparsedet, 2 threads"}
    assert torch.get_num_threads() == 1


def test_op_of_the_papers_size_has_its_tokens():
    shapes = op.level_shapes((800, 1333))
    assert shapes == [(100, 167), (50, 84), (25, 42), (13, 21)]
    assert [len(q) for q in op.query_sets(22223).values()] == [22223, 6666, 2222, 900]
    centers = op.cell_centers(shapes)
    assert centers.shape == (22223, 2)
    assert_close(centers[168], torch.tensor([1.5 / 167, 1.5 / 100]))


def test_head_major_values_are_the_same_values():
    inputs = op.make_inputs(op.Problem((64, 96), 1, "float32", "cpu", "all tokens"))
    head_major = inputs.head_major()
    assert torch.equal(inputs.value, head_major.value)
    assert head_major.value.transpose(1, 2).is_contiguous() and inputs.value.is_contiguous()


def test_refuses_to_time_the_reference_against_itself(monkeypatch, capsys):
    monkeypatch.setattr(op, "has_compiled_kernel", lambda _device: False)
    assert benchmark.main(["op"]) == 2
    assert "no compiled kernel for cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--rounds", "0"], "--rounds must be at least 1"),
        (["model", "--config-file", "configs/common/train.py"], "has no model"),
        (["model", "--config-file", QUICKSTART, "--cuda-graphs"], "needs --device cuda"),
        (["--suite", "cpu", "--only", "nothing"], "--only must name sections"),
        (["model", "--peer", "nothing"], "--peer must be dotted.module:name, got 'nothing'"),
        (["model", "--peer", "nowhere:f"], "--peer nowhere:f cannot be imported"),
        (["model", "--peer", "math:nothing"], "--peer math:nothing cannot be imported"),
        (["eval", "--config-file", "configs/common/models/dino.py"], "Use a training config"),
        (["gpu-op", "--device", "cpu"], "gpu-op needs --device cuda, got cpu"),
        (["ops", "--threads", "1"], "There is no mode 'ops'"),
        (["op", "--device", "nothing"], "--device nothing cannot be used here"),
    ],
)
def test_bad_arguments(root, words, message, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert benchmark.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("queries", ["all", "900", "10 %"])
def test_arguments_of_the_op_on_a_gpu(queries):
    inputs = gpu_op.make_arguments(gpu_op.Case(queries, 2, "bfloat16", "head-major"), "cpu")
    count = inputs.locations.shape[1]
    assert count == {"all": 22223, "900": 900, "10 %": 2222}[queries]
    assert inputs.value.dtype == torch.bfloat16
    assert inputs.value.transpose(1, 2).is_contiguous()
    output = ms_deform_attn(inputs.value, gpu_op.SHAPES, inputs.locations, inputs.weights)
    assert output.shape == inputs.grad_output.shape == (2, count, 256)
    if queries == "10 %":
        assert torch.equal(inputs.order.sort().values, torch.arange(count).expand(2, -1))
    else:
        assert inputs.order is None


def test_lines_of_the_op_on_a_gpu(monkeypatch):
    """A part of the tokens has a line for each order; naive kernels know one order and layout."""
    took = iter([8.0, 4.0, 12.0, 6.0, 10.0, 2.0, 3.0, 5.0])  # two images at a time
    monkeypatch.setattr(gpu_op, "make_arguments", lambda case: SimpleNamespace(
        locations=torch.zeros(2, 7), order=torch.zeros(2, 7)))  # fmt: skip
    monkeypatch.setattr(gpu_op, "time_calls", lambda call, sets: next(took))
    monkeypatch.setattr(gpu_op, "floor", lambda case, queries: 1.0)
    rows = gpu_op.measure(gpu_op.Case("10 %", 2, "float32"), (None, None))
    head, first, second = gpu_op.table({"rows": rows})
    assert first[0] == "10 % (7)" and second[0] == "10 % in tiles (7)"
    assert first[4:] == ["4.0", "2.0", "2.00", "1.0", "0.50", "6.0", "3.0", "2.00", "5.0"]
    assert second[4:] == ["4.0", "1.0", "4.00", "1.0", "1.00", "6.0", "1.5", "4.00", "2.5"]
    took = iter([4.0, 6.0, 10.0] * 2)
    rows = gpu_op.measure(gpu_op.Case("10 %", 2, "float32", "head-major"), (None, None))
    shown = dict(zip(head[4:8], gpu_op.table({"rows": rows})[1][4:8], strict=True))
    assert shown == {"naive us": "", "ours us": "2.0", "ratio": "", "floor us": "1.0"}


@pytest.mark.parametrize("option", ["--batch", "--scaling", "--threads"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5"])
def test_numbers_that_must_be_positive(option, number, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["op", option, number])
    assert ended.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_changes_may_follow_the_configs():
    words = ["--config-file", QUICKSTART, "model.embed_dim=64", "--rounds", "1"]
    args = modes.parser("model").parse_intermixed_args(words)
    (case,) = cases.product(args)
    assert (case.config, case.overrides) == (QUICKSTART, ("model.embed_dim=64",))

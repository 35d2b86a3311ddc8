"""`sparsedet benchmark`: what each mode times is what it says, and figures are written."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sparsedet.layers import has_compiled_kernel, ms_deform_attn_reference

QUICKSTART = "configs/quickstart.py"
SMALL = ("model.encoder.feedforward_dim=64", "model.decoder.num_layers=1")
BRIEF = ("--seconds", "0", "--rounds", "2", "--threads", "1")
SHAPES = [(6, 9), (3, 5)]


@pytest.fixture
def tool() -> Any:
    return importlib.import_module("sparsedet.cli.benchmark")


@pytest.fixture
def part():
    return lambda name: importlib.import_module(f"sparsedet.benchmark.{name}")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(tool: Any, tmp_path: Path, *words: str) -> dict[str, Any]:
    """The JSON of a command that must succeed."""
    target = tmp_path / "new" / "figures.json"
    assert tool.main([*words, "--json", str(target)]) == 0
    return json.loads(target.read_text())


def op_arguments() -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """With locations outside of the map."""
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, 4, 3, requires_grad=True)
    locations = (torch.rand(2, 7, 4, 2, 3, 2) * 1.6 - 0.3).requires_grad_()
    weights = torch.rand(2, 7, 4, 2, 3, requires_grad=True)
    return value, SHAPES, locations, weights


# --- what is compared with ours -------------------------------------------------------------------


def test_embedding_bag_is_the_same_op(part):
    value, shapes, locations, weights = op_arguments()
    ours = ms_deform_attn_reference(value, shapes, locations, weights)
    theirs = part("reference").embedding_bag_attention(value, shapes, locations, weights)
    assert_close(theirs, ours)
    grad = torch.randn_like(ours)
    inputs = (value, locations, weights)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(theirs, inputs, grad),
        strict=True,
    ):
        assert_close(other, mine, rtol=1e-4, atol=1e-5)


def test_grid_sample_form_is_the_same_model(part):
    cases = part("cases")
    case = cases.Case(QUICKSTART, SMALL, image_size=(64, 96))
    twin = cases.replace(case, form=cases.GRID_SAMPLE)
    ours, theirs = cases.load_model(case), cases.load_model(twin)
    assert any(type(each).__name__ == "GridSampleAttention" for each in theirs.modules())
    images, sizes = cases.noise(case, ours)
    with torch.no_grad():
        mine, other = ours.detect(images, sizes), theirs.detect(images, sizes)
    assert_close(other.memory.tokens, mine.memory.tokens, rtol=1e-4, atol=1e-4)
    assert_close(other.decoder[-1].boxes, mine.decoder[-1].boxes, rtol=1e-3, atol=1e-4)


def six_arguments(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, step: int
) -> Tensor:
    """An op as it is usually called; it believes the level starts that it gets."""
    assert step > 0 and starts.tolist() == [0, 54]
    pairs = [(int(h), int(w)) for h, w in shapes]
    return ms_deform_attn_reference(value, pairs, locations, weights)


@pytest.mark.parametrize("name", ["six_arguments", "ms_deform_attn_reference"])
def test_peers_are_called_as_they_want(part, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "peer", sys.modules[__name__])
    arguments = op_arguments()
    peer = part("reference").peer_attention(f"peer:{name}")
    assert_close(peer(*arguments), ms_deform_attn_reference(*arguments))


@pytest.mark.parametrize("path", ["nothing", "nowhere:f", "math:nothing"])
def test_peer_that_is_not_there(tool, path, capsys):
    assert tool.main(["op", "--peer", path, "--against"]) == 2
    assert "--peer" in capsys.readouterr().err


class Peer(nn.Module):
    """Somebody's detector."""

    def forward(self, images: Tensor) -> Tensor:
        """Images to something."""
        assert images.shape == (1, 3, 64, 96)
        return images.mean()


# --- cases ----------------------------------------------------------------------------------------


def parsed(part, *words: str) -> list[Any]:
    modes = part("modes")
    return part("cases").product(modes.parser("model").parse_intermixed_args(words))


def test_product_of_everything(part):
    cases = parsed(
        part, *SMALL, "--config-file", QUICKSTART, "--variant", "", "--variant",
        "model.selector.layer_ratios=[1.0,1.0] model.encoder.num_objects=9",
        "--keep-ratio", "dense", "0.2", "--image-size", "64x96", "96x64",
        "--dtype", "float32", "bfloat16", "--reference",
    )  # fmt: skip
    assert len({(case.name, case.image_size) for case in cases}) == len(cases) == 2**5
    assert {case.image_size for case in cases} == {(64, 96), (96, 64)}
    assert all(case.overrides[:2] == SMALL for case in cases)
    assert cases[0].name == "quickstart, dense"
    assert all(case.prepared == (case.form == "sparsedet") for case in cases)
    names = [case.name for case in cases]
    assert (
        "quickstart, keep 0.2, model.selector.layer_ratios=[1.0,1.0], model.encoder.num_objects=9, "
        "grid_sample, bfloat16" in names
    )
    assert [len(group) for group in part("cases").groups(cases)] == [16, 16]


def test_a_config_without_a_ratio_is_there_once(part):
    dino = "projects/dino/configs/dino_r50_4scale_12ep.py"
    cases = parsed(part, "--config-file", dino, QUICKSTART, "--keep-ratio", "0.1", "0.2")
    assert [case.keep for case in cases] == ["config", "0.1", "0.2"]


@pytest.mark.parametrize("ratio", ["0.3", "0.05", "dense"])
def test_keep_ratio_is_the_mean_over_the_layers(part, ratio):
    case = part("cases").Case(QUICKSTART, SMALL, keep=ratio, image_size=(160, 160))
    facts = part("model").model_facts(case)
    wanted = facts["tokens"] * (1.0 if ratio == "dense" else float(ratio))
    assert facts["kept_tokens"] == pytest.approx(wanted, abs=1.5)
    assert facts["gflops"]["total"] > 0


def test_facts_of_a_model_need_no_picture(part, monkeypatch):
    """They are those of a pass, also where the backbone pads what it sees."""
    model, cases = part("model"), part("cases")
    case = cases.Case(QUICKSTART, (*SMALL, "model.max_detections=9"), image_size=(70, 90))
    detector = cases.load_model(case)
    detector.backbone.size_divisibility = 32
    with torch.inference_mode():
        output = detector.detect(*cases.noise(case, detector))
    monkeypatch.setattr(model, "noise", None)
    facts = model.model_facts(case)
    kept = [selection.counts[0] for selection in output.selections]
    assert facts["tokens"] == output.features.num_valid[0] < output.features.num_tokens
    assert facts["kept_tokens"] == sum(kept) / len(kept)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ("0", "--keep-ratio 0: TopKSelector.keep_ratio must be in (0, 1], got 0.0"),
        ("0.9", "--keep-ratio 0.9: TopKSelector.keep_ratio must be at most 0.75"),
        ("half", "--keep-ratio must be dense, config or a number, got 'half'"),
    ],
)
def test_keep_ratio_that_cannot_be_had(tool, ratio, message, capsys):
    assert tool.main(["model", "--config-file", QUICKSTART, "--keep-ratio", ratio]) == 2
    assert message in capsys.readouterr().err


def test_scores_of_objects_are_in_blobs(part):
    """Neighbours of a kept token are kept too, unlike those of random scores."""
    cases = part("cases")
    model = cases.load_model(cases.Case(QUICKSTART, SMALL))
    maps = [torch.zeros(1, 64, 160 // stride, 160 // stride) for stride in model.neck.strides]
    features = model.embed(maps, [(160, 160)])
    scores = cases.object_scores(features)
    assert scores.shape == (1, features.num_tokens) and torch.equal(
        scores, cases.object_scores(features)
    )
    finest = features.split_levels(scores)[0].view(40, 40)
    kept = finest >= finest.flatten().topk(160).values[-1]
    beside = (kept[:, 1:] & kept[:, :-1]).sum() / kept.sum()
    assert beside > 0.5


def test_scorer_keeps_its_gradient_under_given_scores(part):
    cases = part("cases")
    model = cases.build_model(cases.Case(QUICKSTART, SMALL)).train()
    maps = [torch.randn(1, 64, 160 // stride, 160 // stride) for stride in model.neck.strides]
    features = model.embed(maps, [(160, 160)])
    logits = model.scorer(features, model.heads).logits
    assert_close(logits, cases.object_scores(features))
    logits.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.scorer.parameters())


# --- running --------------------------------------------------------------------------------------


def test_a_case_that_fails_leaves_the_others(part, capsys):
    execution, cases = part("execution"), part("cases")
    good, bad = cases.Case("good"), cases.Case("bad")

    def make(case: Any) -> Any:
        def work() -> dict[str, float]:
            if case is bad:
                raise torch.OutOfMemoryError("no room\nmore about it")
            return {"a": 1.0, "b": 2.0}

        return work

    turns = execution.Turns(seconds=0, rounds=2, warm_up=1)
    timings, errors = execution.time_cases([bad, good], make, turns)
    assert timings == {"good": [{"a": 1.0, "b": 2.0}] * 2}
    assert errors == {"bad": "OutOfMemoryError: no room"}
    rows = [execution.timing_row(case, [bad, good], timings, errors) for case in (bad, good)]
    assert rows[0]["error"] == "OutOfMemoryError: no room" and "ms" not in rows[0]
    assert rows[1]["ms"]["median"] == 3.0 and rows[1]["against"] == "good"
    assert "no room" in capsys.readouterr().err


def test_a_recording_that_fails_is_ended(part, monkeypatch):
    """Also where the device has ended it before: then torch leaves its allocator in it."""
    execution, calls = part("execution"), []

    class Graph:
        def capture_begin(self, pool: int) -> None:
            calls.append(f"begin {pool}")

        def capture_end(self) -> None:
            calls.append("end")
            if "synchronize" in calls[-2]:
                raise RuntimeError("the recording has ended")

    pools, stream = iter(range(1, 9)), SimpleNamespace(device_index=0)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C, name, lambda *given, name=name: calls.append(f"{name} {given}")
        )
    execution._pool.cache_clear()
    with pytest.raises(ValueError, match="the cause"), execution._recording(Graph(), stream):
        calls.append("synchronize")
        raise ValueError("the cause")
    with execution._recording(Graph(), stream):
        calls.append("work")
    execution._pool.cache_clear()
    assert calls == [
        "begin 1", "synchronize", "end", "_cuda_endAllocateToPool (0, 1)",
        "_cuda_releasePool (0, 1)", "begin 2", "work", "end",
    ]  # fmt: skip


@pytest.mark.gpu
def test_a_case_whose_recording_fails_leaves_the_others(part):
    execution, cases = part("execution"), part("cases")
    x = torch.ones(1000, device="cuda")
    works = {
        "waits": lambda: x.sum().item(),
        "copies": lambda: torch.ones(3).to("cuda"),
        "adds": lambda: x + torch.rand_like(x),
    }
    turns = execution.Turns(seconds=0, rounds=2, warm_up=1)
    for name in [*works, *works]:
        case = cases.Case(name, device="cuda", graphs=True)
        with ExitStack() as contexts:
            timings, errors = execution.time_cases(
                [case],
                lambda case, contexts=contexts: execution.inference_pass(
                    case, works[case.config], contexts
                ),
                turns,
            )
        assert list(timings) == ([case.name] if case.config == "adds" else [])
        assert list(errors) == ([] if case.config == "adds" else [case.name])
        assert torch.rand(3, device="cuda").sum().item() > 0
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_peak_memory_of_a_process(part):
    memory = part("memory")
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


def test_model_mode(tool, part, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peer", sys.modules[__name__])
    result = run(
        tool, tmp_path, "model", *SMALL, "--config-file", QUICKSTART, "--image-size", "64x96",
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
    facts = result["environment"]
    assert facts["threads"] == 1 and facts["allocator"] and facts["cpu_capability"]
    assert "peak MB" not in capsys.readouterr().out


def test_batches_have_a_column_of_images_a_second(part):
    """Named as in the table of Sparse DETR; of one image a pass, the milliseconds say it."""
    timing = {"median": 200.0, "p10": 190.0, "p90": 210.0}
    rows = [
        {"name": "a", "image_size": [64, 96], "batch": batch, "ms": timing} for batch in (1, 4, 8)
    ]
    head, *lines = part("model").table({"rows": rows})
    assert head[3:6] == ["ms per image (p10..p90)", "B4FPS", "B8FPS"]
    assert [line[4:6] for line in lines] == [["", ""], ["20.0", ""], ["", "40.0"]]
    failed = {"name": "b", "image_size": [64, 96], "batch": 4, "error": "no memory"}
    assert part("model").table({"rows": [rows[1], failed]})[2][3:5] == ["failed", ""]
    assert not any("FPS" in name for name in part("model").table({"rows": rows[:1]})[0])


def test_encoder_mode_compares_time_and_flops(tool, tmp_path):
    result = run(
        tool, tmp_path, "encoder", *SMALL, "--config-file", QUICKSTART, "--image-size", "64x96",
        "--keep-ratio", "dense", "0.2", *BRIEF,
    )  # fmt: skip
    dense, sparse = result["rows"]
    assert dense["time_ratio"] == dense["flop_ratio"] == 1
    assert sparse["flop_ratio"] == pytest.approx(sparse["gflops"] / dense["gflops"])
    assert sparse["time_over_flops"] == pytest.approx(sparse["time_ratio"] / sparse["flop_ratio"])


def test_train_step_mode(tool, part, tmp_path):
    result = run(
        tool, tmp_path, "train-step", *SMALL, "--config-file", QUICKSTART, "--image-size", "64x96",
        "--keep-ratio", "0.2", "--batch", "2", "--dtype", "bfloat16", "--no-memory", *BRIEF,
    )  # fmt: skip
    (row,) = result["rows"]
    assert list(row["parts"]) == list(part("train_step").PARTS)
    assert row["name"].endswith("bfloat16 autocast")


def test_train_step_trains(part):
    cases, train_step = part("cases"), part("train_step")
    step = train_step.Step(cases.Case(QUICKSTART, SMALL, image_size=(64, 96), batch=2))
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    step()
    moved = {name for name, p in step.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} >= {"backbone", "encoder", "decoder", "scorer"}


def test_dataloader_mode(tool, tmp_path):
    result = run(
        tool, tmp_path, "dataloader", "dataset.short_sides=[64]", "--config-file", QUICKSTART,
        "--max-images", "3", "--shapes-size", "64x96", "--batch", "2", *BRIEF,
    )  # fmt: skip
    (row,) = result["rows"]
    assert result["set"] == {"annotations": "shapes", "size": [64, 96], "images": 3}
    check_timing(row["ms"])
    assert row["images_per_second"] == row["images_per_second_and_core"] > 0


def test_eval_mode_on_a_set_of_ones_own(tool, tmp_path):
    from sparsedet.data.shapes import ShapesOptions, write_shapes

    options = ShapesOptions(size=(64, 96))
    write_shapes(tmp_path / "set", num_train=1, num_val=4, options=options)
    result = run(
        tool, tmp_path, "eval", *SMALL, "dataset.test_short_side=64", "--config-file", QUICKSTART,
        "--annotations", str(tmp_path / "set/annotations/instances_val.json"),
        "--images", str(tmp_path / "set/val"), "--max-images", "3", *BRIEF,
    )  # fmt: skip
    assert [row["keep"] for row in result["rows"]] == ["dense", "config"]
    for row in result["rows"]:
        assert row["images"] == 3
        total = sum(row["ms_per_image"].values())
        assert row["images_per_second"] == pytest.approx(1e3 / total, rel=1e-6)


def test_half_of_a_set_is_an_error(tool, capsys):
    assert tool.main(["eval", "--annotations", "a.json"]) == 2
    assert "--annotations and --images go together" in capsys.readouterr().err


@pytest.mark.skipif(not has_compiled_kernel(), reason="needs the compiled CPU kernels")
def test_op_mode(tool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peer", sys.modules[__name__])
    result = run(
        tool, tmp_path, "op", "--image-size", "64x96", "--against", "grid_sample", "--peer",
        "peer:ms_deform_attn_reference", "--scaling", "2", "--no-memory", *BRIEF,
    )  # fmt: skip
    assert result["tokens"] == 128 == result["rows"][0]["num_queries"]
    assert [row["direction"] for row in result["rows"]] == ["forward", "backward"] * 4
    for row in result["rows"]:
        for timing in row["ms"].values():
            check_timing(timing)
        others = {"sparsedet, token-major", "grid_sample", "peer:ms_deform_attn_reference"}
        assert row["speedup"].keys() == others
        assert row["ms"].keys() == others | {"sparsedet", "sparsedet, 2 threads"}
    assert torch.get_num_threads() == 1


def test_op_of_the_papers_size_has_its_tokens(part):
    op = part("op")
    shapes = op.level_shapes((800, 1333))
    assert shapes == [(100, 167), (50, 84), (25, 42), (13, 21)]
    assert [len(q) for q in op.query_sets(22223).values()] == [22223, 6666, 2222, 900]
    centers = op.cell_centers(shapes)
    assert centers.shape == (22223, 2)
    assert_close(centers[168], torch.tensor([1.5 / 167, 1.5 / 100]))


def test_head_major_values_are_the_same_values(part):
    op = part("op")
    inputs = op.make_inputs(op.Problem((64, 96), 1, "float32", "cpu", "all tokens"))
    head_major = inputs.head_major()
    assert torch.equal(inputs.value, head_major.value)
    assert head_major.value.transpose(1, 2).is_contiguous() and inputs.value.is_contiguous()


def test_refuses_to_time_the_reference_against_itself(tool, part, monkeypatch, capsys):
    monkeypatch.setattr(part("op"), "has_compiled_kernel", lambda _device: False)
    assert tool.main(["op"]) == 2
    assert "no compiled kernel for cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--rounds", "0"], "--rounds must be at least 1"),
        (["model", "--config-file", "configs/common/train.py"], "has no model"),
        (["model", "--config-file", QUICKSTART, "--cuda-graphs"], "needs --device cuda"),
        (["--suite", "cpu", "--only", "nothing"], "--only must name sections"),
        (["--render", "pyproject.toml"], "is not the JSON of this tool"),
        (["--render", "projects/focus_detr/results.json"], "is not the result of a suite"),
        (["ops", "--threads", "1"], "There is no mode 'ops'"),
        (["op", "--device", "nothing"], "--device nothing cannot be used here"),
        (
            ["eval", "--annotations", "projects/focus_detr/results.json", "--images", "docs"],
            "'images' is missing at the top level",
        ),
        (["eval", "--annotations", "pyproject.toml", "--images", "docs"], "is not valid JSON"),
    ],
)
def test_bad_arguments(tool, root, words, message, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert tool.main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch", "--scaling", "--threads"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5"])
def test_numbers_that_must_be_positive(tool, option, number, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.main(["op", option, number])
    assert ended.value.code == 2
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.skipif(not has_compiled_kernel(), reason="needs the compiled CPU kernels")
def test_a_peer_that_fails_leaves_the_other_forms(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peer", sys.modules[__name__])
    figures = tmp_path / "op.json"
    words = ["op", "--image-size", "64x96", "--against", "grid_sample", "--peer", "peer:broken"]
    assert tool.main([*words, "--no-memory", "--json", str(figures), *BRIEF]) == 1
    for row in json.loads(figures.read_text())["rows"]:
        assert row["errors"] == {"peer:broken": "RuntimeError: out of order"}
        assert row["speedup"].keys() == {"sparsedet, token-major", "grid_sample"}
    assert "failed: peer:broken" in capsys.readouterr().err


def broken(value, spatial_shapes, locations, weights):
    raise RuntimeError("out of order")


def test_changes_may_follow_the_configs(part):
    words = ["--config-file", QUICKSTART, "model.embed_dim=64", "--rounds", "1"]
    args = part("modes").parser("model").parse_intermixed_args(words)
    (case,) = part("cases").product(args)
    assert (case.config, case.overrides) == (QUICKSTART, ("model.embed_dim=64",))


# --- suites ---------------------------------------------------------------------------------------


def test_later_options_take_the_place_of_earlier_ones(part):
    merged = part("suites").merged
    words = ["model", "a=1", "--batch", "1", "8", "--reference", "--seconds", "3"]
    assert merged(words, ["--batch", "2", "--no-memory"]) == [
        "model", "a=1", "--reference", "--seconds", "3", "--batch", "2", "--no-memory"
    ]  # fmt: skip


@pytest.mark.parametrize("suite", ["cpu", "gpu", "large", "deploy"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_section_is_a_command_of_the_tool(tool, part, suite, quick):
    modes, suites = part("modes"), part("suites")
    words = ["--suite", suite, *(["--quick"] if quick else [])]
    args = tool.parser().parse_args(words)
    for section in suites.chosen_sections(args):
        line = suites.command(section, args)
        modes.parser(line[0]).parse_intermixed_args(line[1:])


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["cpu", "gpu", "large", "deploy"])
def test_dry_run(tool, suite, tmp_path):
    """Every section runs; on the CPU also where it is meant for a GPU."""
    target, page = tmp_path / "suite.json", tmp_path / "page.md"
    words = ["--suite", suite, "--dry-run", "--device", "cpu", "--json", str(target)]
    assert tool.main([*words, "--markdown", str(page)]) == 0
    sections = json.loads(target.read_text())["sections"]
    rows = [row for section in sections for row in section["result"]["rows"]]
    assert rows and not any("error" in row for row in rows)
    assert page.read_text().count("### ") == len(sections)


def fake(words: Sequence[str]) -> dict[str, Any]:
    if words[0] == "encoder":
        raise RuntimeError("broken")
    return {"mode": "model", "environment": {}, "rows": []}


@pytest.mark.skipif(not has_compiled_kernel(), reason="needs the compiled CPU kernels")
def test_a_form_that_fails_in_a_section_leaves_what_was_measured(tool, part, monkeypatch):
    suites, pages = part("suites"), part("pages")
    words = ("op", "--image-size", "64x96", "--against", "--peer", "math:floor", "--no-memory")
    section = suites.Section("op", "The op", (*words, *BRIEF))
    monkeypatch.setitem(suites.SUITES, "cpu", (section,))
    args = tool.parser().parse_args(["--suite", "cpu"])
    suite = suites.run_suite(args, None)
    (entry,) = suite["sections"]
    assert entry["status"] == "done" and len(entry["result"]["rows"]) == 8
    assert pages.page(suite).count("Failed: math:floor: TypeError") == 1


def test_a_section_that_fails_leaves_the_others(tool, part, tmp_path, monkeypatch):
    monkeypatch.setattr(part("modes"), "run_mode", fake)
    target, page = tmp_path / "gpu.json", tmp_path / "page.md"
    words = ["--suite", "gpu", "--json", str(target), "--markdown", str(page)]
    assert tool.main(words) == 1
    sections = json.loads(target.read_text())["sections"]
    status = {section["name"]: section["status"] for section in sections}
    assert status == {each.name: "done" for each in part("suites").GPU} | {"encoder": "failed"}
    assert "Failed: RuntimeError: broken." in page.read_text()


def test_a_budget_that_is_spent(tool, part, tmp_path, monkeypatch):
    monkeypatch.setattr(part("modes"), "run_mode", fake)
    target = tmp_path / "gpu.json"
    assert tool.main(["--suite", "gpu", "--budget-s", "0", "--json", str(target)]) == 0
    sections = json.loads(target.read_text())["sections"]
    assert {section["status"] for section in sections} == {"left out"}


def rows_to_draw() -> list[dict[str, Any]]:
    timing = {"median": 5.0, "p10": 4.0, "p90": 6.0, "passes": 3}
    shared = {"batch": 1, "ms": timing, "parts": {}, "speedup": 1.0, "tokens": 90}
    return [
        {"name": f"a, keep {keep}", "keep": keep, "image_size": [side, side], **shared}
        | {"kept_tokens": 90 * float(keep), "memory": {"peak_mb": 800.0}}
        for keep, side in (("0.1", 320), ("0.3", 640))
    ]


def test_pages_and_plots(tool, part, tmp_path):
    result = {"mode": "model", "environment": {"threads": 2}, "rows": rows_to_draw()}
    result["rows"].append({"name": "b", "image_size": [9, 9], "batch": 1, "error": "no room"})
    section = {"title": "T", "command": "python x", "status": "done", "result": result}
    suite = {"sections": [{"name": name, **section} for name in ("sizes", "kept")]}
    source = tmp_path / "suite.json"
    source.write_text(json.dumps(suite))
    page, plot = tmp_path / "page.md", tmp_path / "plot.png"
    words = ["--render", str(source), "--markdown", str(page), "--plot", str(plot)]
    assert tool.main(words) == 0
    text = page.read_text()
    assert "| a, keep 0.1 | 320x320 | 1 | 5.00 (4.00..6.00) |" in text
    assert "```bash\npython x\n```" in text and "Failed: b: no room." in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    lines = part("pages")._lines(rows_to_draw(), part("pages")._time_by_tokens)
    assert lines == {"a": [(9.0, 5.0), (27.0, 5.0)]}


def test_nothing_to_draw(tool, tmp_path, capsys):
    source = tmp_path / "suite.json"
    source.write_text('{"sections": []}')
    assert tool.main(["--render", str(source), "--plot", str(tmp_path / "x.png")]) == 2
    assert "--plot needs the sections" in capsys.readouterr().err

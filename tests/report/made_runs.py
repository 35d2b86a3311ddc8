"""Folders of training runs as `sparsedet train` leaves them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsedet.config import LazyConfig, get_config
from sparsedet.data import open_dataset
from sparsedet.evaluation import COCOEvaluator
from sparsedet.files import write_json
from tests.evaluation.test_coco import answer, write
from tests.report.made import draw_picture

NAMES = ("nut", "<b>bolt", "never")
"""Of the classes; the last has no boxes."""
NUT, BOLT, FAR = [10, 10, 20, 20], [60, 10, 20, 20], [100, 100, 20, 20]


def evaluate(folder: Path) -> dict[str, Any]:
    """The files of an evaluation: a loose box and a missed object, a wrong class and a false box.

    Returns its metrics.
    """
    boxes = {1: [(NUT, 7), (BOLT, 8)], 2: [(NUT, 8)]}
    categories = tuple(zip((7, 8, 9), NAMES, strict=True))
    (folder / "set").mkdir()
    source = write(folder / "set" / "a.json", boxes, categories=categories)
    content = json.loads(Path(source).read_text())
    for image in content["images"]:
        image.update(width=160, height=140)
        draw_picture(folder / "set" / image["file_name"], (140, 160), seed=image["id"])
    Path(source).write_text(json.dumps(content))
    evaluator = COCOEvaluator(open_dataset(source, str(folder / "set")), output_dir=str(folder))
    answers = {
        1: answer([[10, 10, 20, 12]], [0], [0.9]),
        2: answer([NUT, FAR], [0, 1], [0.8, 0.7]),
    }
    for image_id, output in answers.items():
        evaluator.process([{"image_id": image_id}], [output])
    return {**evaluator.evaluate(), "details": evaluator.details}


def rows(iterations: int, loss: float, evaluations: dict[int, float]) -> list[dict[str, Any]]:
    """The log of a run: a row for each iteration, and AP after some of them."""
    found: list[dict[str, Any]] = []
    for step in range(1, iterations + 1):
        terms = {"loss/decoder.0/focal": loss / step, "loss/decoder.1/focal": loss / step}
        terms["loss/scorer/foreground"] = 0.5 * loss / step
        times = {"seconds_per_iteration": 0.5, "data_seconds": 0.01}
        whole = {"loss": 2.5 * loss / step, "grad_norm": 1.0, "lr": 0.1 / step}
        found.append({"iteration": step, **whole, **terms, **times, "epoch": step / 10})
        if (ap := evaluations.get(step)) is not None:
            found.append(
                {
                    "iteration": step,
                    "eval/bbox/AP": ap,
                    "eval/bbox/AP50": 2 * ap,
                    "eval/bbox/APs": ap / 4,
                    "eval/keep_ratio": 0.3,
                }
            )
    return found


def make_run(
    folder: Path,
    *overrides: str,
    ap: float = 31.5,
    loss: float = 8.0,
    iterations: int = 20,
    evaluated: bool = False,
) -> Path:
    """A run of the quickstart that has ended.

    Args:
        folder: of the run.
        overrides: of its config.
        ap: at the end.
        loss: a half of its terms at the first iteration.
        iterations: how many.
        evaluated: with the files of an evaluation, whose AP is its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg = LazyConfig.apply_overrides(get_config("quickstart"), list(overrides))
    cfg.train.output_dir = str(folder)
    LazyConfig.save(cfg, folder / "config.yaml")
    half = iterations // 2
    log = rows(iterations, loss, {half: ap / 2, iterations: ap})
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in log))
    bbox = {"AP": ap, "AP50": 2 * ap, "AP75": 0.8 * ap, "APs": ap / 4, "APm": ap, "APl": None}
    metrics: dict[str, Any] = {"bbox": {**bbox, "AP50_class_agnostic": 2 * ap}}
    if evaluated:
        metrics = evaluate(folder)
    metrics |= {"keep_ratio": 0.3, "seconds_per_image": 0.0125}
    about = {"config": "quickstart", "overrides": list(overrides), "seed": 3, "device": "cpu"}
    about |= {"num_processes": 1, "versions": {"sparsedet": "0.1", "torch": "2.99"}}
    ended = {"best": {"metric": "bbox/AP", "value": ap, "iteration": iterations}}
    ended |= {"ended": "all iterations are done", "iterations": iterations}
    ended |= {"seconds_training": 3723.0, "seconds_per_iteration": 0.5}
    write_json(folder / "results.json", {"metrics": metrics, "keep_ratio": 0.3, **ended, **about})
    start = {"config": "quickstart", "overrides": list(overrides), "time": "T", "iteration": 0}
    machine = {"device": "cpu", "threads": 2}
    run = {**about, "max_iter": iterations, "machine": machine, "starts": [start]}
    write_json(folder / "run.json", run)
    write_json(folder / "data.json", {"survey": [_part("training")], "misfits": ["A misfit."]})
    stages = {"backbone": 1.5, "encoder": 0.5}
    gflops = {"stages": stages, "total": 2.0, "sizes": [[160, 200, 1]]}
    parameters = {"by_stage": {"backbone": 2_000_000, "encoder": 500_000}, "total": 2_500_000}
    costs = {"parameters": parameters, "gflops": gflops, "latency": None}
    write_json(folder / "analysis.json", costs)
    return folder


def _part(name: str) -> dict[str, Any]:
    spreads = {"short_side": [100, 120, 140], "long_side": [160, 160, 170], "box_size": [7, 14, 40]}
    return {
        "name": name,
        "pictures": 12,
        "empty": 1,
        "boxes": 34,
        "ignore_regions": 0,
        "most": 5,
        "classes": [{"class": each, "boxes": 17, "pictures": 9} for each in NAMES],
        "file": spreads,
        "input": {**spreads, "share_small": 0.123, "share_vanished": 0.0},
        "unknown": None,
    }

"""What a training run leaves for its report, beside its log and its evaluation."""

from __future__ import annotations

import logging
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from sparsedet import __version__, comm
from sparsedet.analysis import count_flops, count_parameters, depends_on_image, machine_facts
from sparsedet.config import trusting
from sparsedet.data import AnnotatedDataset
from sparsedet.engine import Trainer
from sparsedet.files import read_object, write_json
from sparsedet.report.runs import write_report
from sparsedet.report.runs.folder import COSTS, DATA, RUN

__all__ = ["describe_run", "finish_run", "start_run"]

logger = logging.getLogger(__name__)


def describe_run(
    origin: Mapping[str, Any], device: torch.device, *, seed: int, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Where a run comes from and what it runs on, as `results.json` has it.

    Args:
        origin: the config and its overrides.
        device: that it computes on.
        seed: of its random numbers.
        facts: of `sparsedet.changes.run_facts`.
    """
    return {
        **origin,
        "seed": seed,
        "device": device.type,
        "num_processes": comm.get_world_size(),
        "annotations": {
            name.split()[-2]: digest
            for name, digest in facts.items()
            if name.endswith("annotations")
        },
        "versions": {
            "sparsedet": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
    }


def start_run(folder: Path, about: Mapping[str, Any], trainer: Trainer, survey: Any) -> None:
    """Write what is known when a run starts or resumes, on the main process.

    Args:
        folder: of the run.
        about: of `describe_run`.
        trainer: at the iteration where it starts.
        survey: a `sparsedet.survey.Survey` of its data; None where that is not known.
    """
    if not comm.is_main_process():
        return
    before = _before(folder / RUN) if trainer.iteration else {}
    start = {
        "config": about.get("config"),
        "overrides": about.get("overrides", []),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "iteration": trainer.iteration,
    }
    machine = {"system": platform.platform(), **machine_facts(trainer.device)}
    starts = [*before.get("starts", []), start]
    content = {**about, "max_iter": trainer.max_iter, "machine": machine, "starts": starts}
    write_json(folder / RUN, content)
    if survey is not None:
        write_json(folder / DATA, {"version": __version__, **survey.facts()})


def _before(path: Path) -> dict[str, Any]:
    """What earlier starts wrote; a damaged file does not keep a run from resuming."""
    try:
        return read_object(path) or {}
    except ValueError as error:
        logger.warning("%s The report will not have the earlier starts of this run.", error)
        return {}


def finish_run(folder: Path, model: nn.Module, loader: Any) -> None:
    """Count what the model costs, and write the report; a failure is one warning.

    Args:
        folder: of the run, with its results.
        model: that was trained.
        loader: of the evaluation; its pictures say at which size costs are counted.
    """
    try:
        if not (folder / COSTS).is_file():
            _write_costs(folder / COSTS, model, loader)
    except Exception as error:
        logger.warning(
            "the cost of the model could not be counted (%s). Run: sparsedet analyze %s --output "
            "%s",
            error,
            folder / "config.yaml",
            folder / COSTS,
        )
    try:
        with trusting():  # its config has just been run
            path = write_report([folder]).path
        logger.info("the report is in %s", path)
    except Exception as error:
        logger.warning(
            "the report could not be written (%s). Fix this, then run: sparsedet report %s",
            error,
            folder,
        )


def _write_costs(path: Path, model: Any, loader: Any) -> None:
    """Parameters and GFLOPs by stage, in the form of `sparsedet analyze`, where one size tells."""
    size = _usual_size(loader)
    if size is None or depends_on_image(model):
        return
    parameters, flops = count_parameters(model), count_flops(model, size)
    stages = {"stages": dict(flops.stages), "total": flops.total}
    content = {
        "parameters": {**asdict(parameters), "total": parameters.total},
        "gflops": {**stages, "sizes": [[*size, 1]]},
        "latency": None,
    }
    write_json(path, content)


def _usual_size(loader: Any) -> tuple[int, int] | None:
    """The size (h, w) that most pictures have at the model's input; None where it is not known."""
    source, mapper = getattr(loader, "source", None), getattr(loader, "mapper", None)
    measure = getattr(mapper, "output_size", None)
    if not isinstance(source, AnnotatedDataset) or measure is None:
        return None
    files = Counter((record["height"], record["width"]) for record in source.records)
    sizes = Counter()
    for (height, width), count in files.items():
        size = None if None in (height, width) else measure(height, width)
        if size is not None:
            sizes[tuple(size)] += count
    return sizes.most_common(1)[0][0] if sizes else None

"""What a model card tells, gathered from a run and from the model that was written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from sparsedet import __version__
from sparsedet.analysis import count_flops, count_parameters, depends_on_image
from sparsedet.config import instantiate, setting, texts
from sparsedet.data import open_dataset
from sparsedet.hub.run import ANALYSIS, Run
from sparsedet.loading import load_detector, trained_config
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import Size
from sparsedet.predictor import PictureSource, read_picture
from sparsedet.predictor.pictures import make_sample

_USUAL = (480, 640)  # a picture whose cost is counted, as by `sparsedet analyze`
_PARTS = {"annotations", "labels", "images", "train", "val", "valid", "test"}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What one picture costs.

    Attributes:
        parameters: all of them.
        gflops: multiply-adds, a multiply-add being 1.
        size: (h, w) of the model's input.
        milliseconds: of a pass; None where nobody has measured it.
        protocol: how that was measured.
    """

    parameters: int
    gflops: float
    size: Size
    milliseconds: float | None
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a model card tells.

    Attributes:
        name: of the model.
        run: that it is from.
        classes: names, in the order of the labels.
        dataset: what the data is called.
        sets: pictures and objects by part; None where its files are not here.
        keep_ratio: share of the tokens that the encoder updates; None where the model has none.
        cost: of a picture; None where it cannot be counted.
        has_picture: whether there is one.
        has_tokens: whether the picture has kept tokens.
        changes: overrides of the run that say nothing about places.
        versions: of packages, when it was trained.
    """

    name: str
    run: Run
    classes: Sequence[str]
    dataset: str
    sets: Mapping[str, tuple[int, int] | None]
    keep_ratio: float | None
    cost: Cost | None
    has_picture: bool
    has_tokens: bool
    changes: Sequence[str]
    versions: Mapping[str, str]


def gather(
    run: Run, folder: Path, picture: PictureSource | None, *, name: str, dataset: str | None
) -> Facts:
    """Gather the facts.

    Args:
        run: the run.
        folder: weights and config as they were written.
        picture: that the card shows.
        name: of the model.
        dataset: what the data is called; None = as its folder.
    """
    cfg = trained_config(folder, "model", "dataloader.test.mapper")
    model = load_detector(cfg, folder)
    return Facts(
        name=name,
        run=run,
        classes=list(map(str, texts(run.cfg.dataset.class_names or ()))),
        dataset=dataset or dataset_name(run.cfg.dataset),
        sets={part: _counts(run.cfg, part) for part in ("train", "val")},
        keep_ratio=run.metrics.get("keep_ratio", run.results.get("keep_ratio")),
        cost=_cost(run, model, cfg, picture),
        has_picture=picture is not None,
        has_tokens=isinstance(model, TokenSparseDetector),
        changes=[each for each in run.results.get("overrides", ()) if not _is_of_places(each)],
        versions=run.results.get("versions") or _versions(run),
    )


def dataset_name(dataset: Any) -> str:
    """What a set is called: the folder that its files are in.

    Args:
        dataset: ``cfg.dataset``.
    """
    places = [dataset.get(key) for key in ("path", "train_json", "val_json")]
    place = next((each for each in places if each), None)
    if place is None:
        return "custom"
    parts = [part for part in PurePath(place).parts if not PurePath(part).suffix]
    while parts and parts[-1].lower() in _PARTS:
        parts.pop()
    return parts[-1].strip("/\\") if parts and parts[-1].strip("/\\") else "custom"


def _is_of_places(override: str) -> bool:
    key, _, value = override.partition("=")
    return key.lstrip("+").startswith(("dataset.", "train.output_dir")) or "/" in value


def _counts(cfg: Any, part: str) -> tuple[int, int] | None:
    """Pictures and objects; no picture is opened."""
    path = cfg.dataset.get(f"{part}_json")
    given = setting(cfg, f"dataloader.{'test' if part == 'val' else 'train'}.dataset")
    if given is None or path is None:
        return None
    try:
        found = open_dataset(path, None, split=part, format=cfg.dataset.get("format", "auto"))
    except (ValueError, OSError) as error:
        _logger.warning("the card does not tell how many pictures there were: %s", error)
        return None
    return len(found.records), found.num_objects


def _cost(run: Run, model: Any, cfg: Any, picture: PictureSource | None) -> Cost | None:
    """As `sparsedet analyze` found it, if it did; else counted."""
    parameters = count_parameters(model).total
    if run.analysis:
        left = _analysed(run, parameters)
        if left is not None:
            return left
    mapper = instantiate(cfg.dataloader.test.mapper)
    image, size = None, getattr(mapper, "output_size", lambda *size: None)(*_USUAL)
    if size is None or depends_on_image(model):
        if picture is None:
            return None
        sample = make_sample(mapper, read_picture(picture, getattr(mapper, "pictures", None)))
        batch = model.preprocess([sample])
        image, size = batch.images[0], batch.image_sizes[0]
    gflops = count_flops(model, size, image=image).total
    return Cost(parameters, gflops, size, None, {})


def _analysed(run: Run, parameters: int) -> Cost | None:
    """The figures of `sparsedet analyze`; None where they are not of one pass of this model."""
    figures = run.analysis
    try:
        ((height, width, _),) = figures["gflops"]["sizes"]
        latency = figures["latency"] or {"total": None, "protocol": {}}
        cost = Cost(
            figures["parameters"]["total"],
            figures["gflops"]["total"],
            (height, width),
            latency["total"],
            latency["protocol"],
        )
    except (LookupError, TypeError, ValueError):
        cost = None
    if cost is not None and cost.parameters == parameters:
        return cost
    _logger.warning("%s is not of this model and one size, and is left out", ANALYSIS)
    return None


def _versions(run: Run) -> dict[str, str]:
    known = run.checkpoint.get("run") or {}
    return {name: str(known[name]) for name in ("sparsedet", "torch") if name in known} or {
        "sparsedet": __version__,
        "torch": str(torch.__version__),
    }

"""Gather the facts of a model card from a run and from the written model."""

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

_USUAL = (480, 640)  # size of the picture whose cost is counted, as in `sparsedet analyze`
_PARTS = {"annotations", "labels", "images", "train", "val", "valid", "test"}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """The cost of one picture.

    Attributes:
        parameters: number of parameters.
        gflops: GFLOPs; a multiply-add counts as 1.
        size: (h, w) of the model's input.
        milliseconds: time of one pass; None if it was not measured.
        protocol: how the time was measured.
    """

    parameters: int
    gflops: float
    size: Size
    milliseconds: float | None
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """The facts of a model card.

    Attributes:
        name: name of the model.
        run: the run that trained it.
        classes: class names, in the order of the labels.
        dataset: name of the data set.
        sets: numbers of pictures and objects of each part; None if its files are missing.
        keep_ratio: share of the tokens that the encoder updates; None if the model has none.
        cost: cost of a picture; None if it cannot be counted.
        has_picture: whether the card has a picture.
        has_tokens: whether the picture shows kept tokens.
        changes: overrides of the run, without those that set paths.
        versions: versions of packages during training.
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
        folder: the folder with the written weights and config.
        picture: the picture that the card shows.
        name: name of the model.
        dataset: name of the data set; None = the name of its folder.
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
    """The name of a data set: that of the folder of its files.

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
    """Numbers of pictures and objects; no picture is opened."""
    path = cfg.dataset.get(f"{part}_json")
    given = setting(cfg, f"dataloader.{'test' if part == 'val' else 'train'}.dataset")
    if given is None or path is None:
        return None
    try:
        found = open_dataset(path, None, split=part, format=cfg.dataset.get("format", "auto"))
    except (ValueError, OSError) as error:
        _logger.warning("the card cannot give the number of pictures: %s", error)
        return None
    return len(found.records), found.num_objects


def _cost(run: Run, model: Any, cfg: Any, picture: PictureSource | None) -> Cost | None:
    """The cost from `sparsedet analyze` if there is one; else it is counted."""
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
    """The figures of `sparsedet analyze`; None if they are of another model or several sizes."""
    figures = run.analysis
    try:
        ((height, width, _),) = figures["gflops"]["sizes"]
        latency = figures["latency"] or {"total": None, "protocol": {}}
        cost = Cost(
            figures["parameters"]["total"],
            float(figures["gflops"]["total"]),
            (height, width),
            None if latency["total"] is None else float(latency["total"]),
            dict(latency["protocol"]),
        )
    except (LookupError, TypeError, ValueError):
        cost = None
    if cost is not None and cost.parameters == parameters:
        return cost
    _logger.warning("%s is not used: it is of another model or of several sizes", ANALYSIS)
    return None


def _versions(run: Run) -> dict[str, str]:
    known = run.checkpoint.get("run") or {}
    return {name: str(known[name]) for name in ("sparsedet", "torch") if name in known} or {
        "sparsedet": __version__,
        "torch": str(torch.__version__),
    }

"""Load the models of a sweep, and measure each at one keep ratio or look ratio."""

from __future__ import annotations

import copy
import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sparsedet.analysis import (
    ImageShare,
    WatchedEvaluator,
    blank_share,
    count_flops,
    depends_on_image,
    measure_latency,
    share_by_content,
)
from sparsedet.config import LazyConfig, instantiate, read_config
from sparsedet.data import resolve_dataset
from sparsedet.evaluation import evaluate
from sparsedet.loading import (
    class_names_of,
    load_detector,
    require_same_classes,
    require_tokens,
)
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import Size
from sparsedet.weights.cache import weights_file
from sparsedet.weights.folders import find_folder

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TILES = {"tile_recall": "recall", "oracle": "oracle", "random": "random"}
"""Columns about tiles, and their names in the results of an evaluation."""
_COSTED_IMAGES = 8
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model to measure, and everything that its results depend on."""

    name: str
    config: str
    weights: str
    cfg: Any
    model: TokenSparseDetector
    loader: Any
    evaluator: Any


@dataclass(frozen=True)
class Share:
    """The ratio that a sweep varies.

    Attributes:
        column: column of a row with its measured value.
        key: config key of the part that has it.
        of: what it is a share of: "tokens" or "tiles".
    """

    column: str
    key: str
    of: str

    def selector(self, model: TokenSparseDetector) -> Any:
        """The selector whose ``keep_ratio`` it is; None if the model has none."""
        chosen = model if self.key == "model" else getattr(model, "regions", None)
        return getattr(chosen, "selector", None)

    def asked(self, model: TokenSparseDetector) -> float | None:
        """The value that is set in the model; None if the model has none."""
        return getattr(self.selector(model), "keep_ratio", None)

    def measured(self, output: Mapping[str, Any]) -> float:
        """The measured value for one picture, from the model's output."""
        if self is KEEP:
            return float(output["keep_ratio"])
        return float(output["tiles"].looked.float().mean())

    def set_all(self, cfg: Any) -> None:
        """Set the share in a config to 1."""
        part = cfg.model if self is KEEP else cfg.model.regions
        if part.get("look_ratio") is not None:
            part.look_ratio = 1.0
        else:
            part.selector.keep_ratio = 1.0


KEEP = Share("keep_ratio", "model", "tokens")
LOOK = Share("look_ratio", "model.regions", "tiles")


def load_subject(config: str, weights: str, overrides: Sequence[str]) -> Subject:
    """Load a model with its weights, ready to detect.

    Raises:
        ConfigError: the config cannot be read, or is not a config of a training run.
        CheckpointError: the weights cannot be read or do not fit.
        DatasetError: the test set cannot be used.
    """
    cfg = read_config(config, overrides, needs=("model", "dataloader", "dataset", "train"))
    if cfg.dataset.class_names is None:
        cfg.dataset.class_names = class_names_of(weights)
    resolve_dataset(cfg, ("val",))
    require_same_classes(cfg)
    if "output_dir" in cfg.dataloader.evaluator:
        cfg.dataloader.evaluator.output_dir = None  # do not overwrite the predictions of the run
    model = require_tokens(load_detector(cfg, weights))
    folder = find_folder(weights)
    path = Path(weights_file(weights)).resolve()
    return Subject(
        name=(folder and folder.repository) or path.parent.name,
        config=config,
        weights=weights,
        cfg=cfg,
        model=model,
        loader=instantiate(cfg.dataloader.test),
        evaluator=instantiate(cfg.dataloader.evaluator),
    )


def median_size(cfg: Any) -> Size:
    """Input size of the test image of median area."""
    mapper = instantiate(cfg.dataloader.test.mapper)
    records = instantiate(cfg.dataloader.test.dataset).records
    sizes = [mapper.output_size(record["height"], record["width"]) for record in records]
    return sorted(sizes, key=lambda size: (size[0] * size[1], size))[len(sizes) // 2]


def digest(subject: Subject, size: Size, swept: Share | None) -> str:
    """A hash of everything that accuracy and cost depend on, except the ratio that is swept."""
    cfg = copy.deepcopy(subject.cfg)
    for key in [key for key in cfg if key not in ("model", "dataset", "dataloader")]:
        del cfg[key]
    cfg.dataloader.train = None
    if swept is not None:
        swept.set_all(cfg)
    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(cfg, Path(folder) / "config.yaml")
        text = (Path(folder) / "config.yaml").read_bytes()
    content = hashlib.sha256(text + repr((size, str(subject.model.device))).encode())
    content.update(Path(weights_file(subject.weights)).read_bytes())
    content.update(instantiate(subject.cfg.dataloader.test.dataset).digest().encode())
    return content.hexdigest()


def measure(subject: Subject, size: Size, repetitions: int, share: Share = KEEP) -> Row:
    """Measure accuracy on the test set, and cost and time at one size or for some test images."""
    model, watched = subject.model, WatchedEvaluator(subject.evaluator, share.measured)
    with _counted_tokens(model) as count:
        results = evaluate(model, subject.loader, watched)
    tiles = results.get("tiles")
    return {
        "asked_ratio": share.asked(model),
        "keep_ratio": results["keep_ratio"],
        "look_ratio": tiles and tiles["looked"] / 100,
        "tokens": count["kept"] / count["images"],
        "all_tokens": count["all"] / count["images"],
        **{name: _known(results["bbox"].get(name)) for name in METRICS},
        **{name: tiles and _known(tiles[own]) for name, own in TILES.items()},
        "images": results["num_images"],
        **_costs(subject, size, repetitions),
        **_content(model, size, watched.shares, share),
    }


def _known(value: float | None) -> float | None:
    """A metric, or None instead of NaN, which evaluators give without objects."""
    return None if value is None or math.isnan(value) else value


def _costs(subject: Subject, size: Size, repetitions: int) -> Row:
    """GFLOPs and milliseconds; means over a few test images if they depend on the content."""
    model, shown = subject.model, [None]
    if depends_on_image(model):
        shown = _some_images(subject)
    sizes = [size if image is None else (image.shape[-2], image.shape[-1]) for image in shown]
    flops = [count_flops(model, each, image=x) for each, x in zip(sizes, shown, strict=True)]
    latency = [
        measure_latency(model, each, image=x, repetitions=repetitions)
        for each, x in zip(sizes, shown, strict=True)
    ]
    return {
        "GFLOPs": fmean(each.total for each in flops),
        "GFLOPs_by_stage": _mean_by_stage([each.stages for each in flops]),
        "ms": fmean(each.total for each in latency),
        "ms_by_stage": _mean_by_stage([each.stages for each in latency]),
        "protocol": {**latency[0].protocol, "costed_images": len(shown)},
    }


def _some_images(subject: Subject) -> list[Any]:
    """A few normalized test images, evenly spaced."""
    loader = copy.copy(subject.loader)
    keys = [key for batch in loader.batches for key in batch]
    count = min(_COSTED_IMAGES, len(keys))
    loader.batches = [[keys[(2 * i + 1) * len(keys) // (2 * count)]] for i in range(count)]
    return [subject.model.preprocess(batch).images[0] for batch in loader]


def _mean_by_stage(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def _content(
    model: TokenSparseDetector, size: Size, shares: Sequence[ImageShare], share: Share
) -> Row:
    """The kept share by image content, if it is not the same for all images."""
    if not getattr(share.selector(model), "depends_on_image", False):
        return {"by_content": None}
    return {
        "by_content": share_by_content(shares),
        "blank": blank_share(model, size, share.measured),
        "per_image": [asdict(each) for each in shares],
    }


@contextmanager
def _counted_tokens(model: TokenSparseDetector) -> Iterator[dict[str, float]]:
    """Sums over images: all tokens, and updated tokens (the mean over encoder layers)."""
    count = {"images": 0.0, "all": 0.0, "kept": 0.0}

    def add(module: Any, args: tuple, selections: tuple) -> None:
        features = args[1]
        count["images"] += len(features.num_valid)
        count["all"] += sum(features.num_valid)
        count["kept"] += sum(sum(each.counts) for each in selections) / len(selections)

    selector: Any = model.selector
    hook = selector.register_forward_hook(add)
    try:
        yield count
    finally:
        hook.remove()

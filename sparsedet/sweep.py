"""One model at several keep ratios: accuracy, cost and time, as JSON, table and plot."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedet.analysis import count_flops, measure_latency
from sparsedet.checkpoint import load_checkpoint
from sparsedet.config import ConfigError, LazyConfig, instantiate, read_config
from sparsedet.data import resolve_dataset
from sparsedet.evaluation import evaluate
from sparsedet.files import atomic_write, write_json
from sparsedet.loading import load_detector, require_same_classes, trained_class_names
from sparsedet.modeling import AdaptiveSelector, TokenSparseDetector
from sparsedet.modeling.stages import Size
from sparsedet.tables import format_table

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_RATIOS = ("asked_ratio", "keep_ratio")
_COLUMNS = (*_RATIOS, "tokens", "AP", "AP50", "APs", "APm", "APl", "GFLOPs", "ms")
_DIGITS = {"tokens": 0, "GFLOPs": 2, "ms": 1}
Row = dict[str, Any]


def run_sweep(
    config: str,
    weights: str,
    *,
    ratios: Sequence[float],
    fixed: Sequence[tuple[str, str]] = (),
    overrides: Sequence[str] = (),
    output: Path | None = None,
    image_size: Size | None = None,
    repetitions: int = 20,
    report: Callable[[str], None] = lambda line: None,
) -> Sheet:
    """Measure what is missing, and write all of it: `sweep.json` and `sweep.png`.

    Args:
        config: name or file of the config of a model whose selector has a keep ratio.
        weights: of this model.
        ratios: keep ratios in (0, 1].
        fixed: config and weights of models to measure as they are.
        overrides: changes of all configs.
        output: folder of the results; None = "sweep" in ``train.output_dir``.
        image_size: (h, w) of GFLOPs and milliseconds; None = that of the test image of median area.
        repetitions: timed passes.
        report: gets a line for each row that was measured.

    Raises:
        ValueError: something given is wrong; nothing has been measured then.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("The plot needs matplotlib. Run: pip install 'sparsedet[plot]'")
    swept = load_subject(config, weights, overrides)
    selector: Any = swept.model.selector
    if not hasattr(selector, "keep_ratio"):
        raise ConfigError(
            f"{type(selector).__name__} has no keep_ratio to sweep. Sweep a model with "
            "TopKSelector or ElasticSelector, and give this one by --fixed."
        )
    _check_ratios(selector, ratios)
    others = [load_subject(*pair, overrides) for pair in fixed]
    size = image_size or median_size(swept.cfg)
    output = output or Path(swept.cfg.train.output_dir) / "sweep"
    sheet = Sheet(output / "sweep.json", size, report=report)
    for subject in (swept, *others):
        sheet.add(subject, swept=subject is swept)
    for ratio in ratios:
        selector.keep_ratio = ratio
        sheet.complete(swept, ratio, repetitions)
    for subject in others:
        sheet.complete(subject, _own_ratio(subject.model), repetitions)
    draw(sheet.models, output / "sweep.png")
    return sheet


def _check_ratios(selector: Any, ratios: Sequence[float]) -> None:
    try:
        for ratio in ratios:
            selector.keep_ratio = ratio
    except ValueError as error:
        raise ConfigError(f"--ratios: {error}") from error


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model to measure, and what its results depend on."""

    name: str
    config: str
    weights: str
    cfg: Any
    model: TokenSparseDetector
    loader: Any
    evaluator: Any


def load_subject(config: str, weights: str, overrides: Sequence[str]) -> Subject:
    """Load a model with its weights, ready to detect.

    Raises:
        ConfigError: the config cannot be read, or is not that of a training run.
        CheckpointError: the weights cannot be read or do not fit.
        DatasetError: the test set cannot be used.
    """
    cfg = read_config(config, overrides, needs=("model", "dataloader", "dataset", "train"))
    if cfg.dataset.class_names is None:
        cfg.dataset.class_names = trained_class_names(load_checkpoint(weights))
    resolve_dataset(cfg, ("val",))
    require_same_classes(cfg)
    if "output_dir" in cfg.dataloader.evaluator:
        cfg.dataloader.evaluator.output_dir = None  # the predictions of a run are not ours to write
    model = load_detector(cfg, weights)
    if isinstance(model.selector, AdaptiveSelector):
        raise ConfigError(
            f"{weights}: AdaptiveSelector keeps another number of tokens of every image, so there "
            "is no cost at one image size to compare. Leave this model out."
        )
    return Subject(
        name=Path(weights).resolve().parent.name,
        config=config,
        weights=weights,
        cfg=cfg,
        model=model,
        loader=instantiate(cfg.dataloader.test),
        evaluator=instantiate(cfg.dataloader.evaluator),
    )


def _own_ratio(model: TokenSparseDetector) -> float | None:
    return getattr(model.selector, "keep_ratio", None)


def median_size(cfg: Any) -> Size:
    """Size, as the model gets it, of the test image of median area."""
    mapper = instantiate(cfg.dataloader.test.mapper)
    records = instantiate(cfg.dataloader.test.dataset).records
    sizes = [mapper.output_size(record["height"], record["width"]) for record in records]
    return sorted(sizes, key=lambda size: (size[0] * size[1], size))[len(sizes) // 2]


def digest(subject: Subject, size: Size, *, swept: bool) -> str:
    """A name for everything but the keep ratio that accuracy and cost depend on."""
    cfg = copy.deepcopy(subject.cfg)
    for key in [key for key in cfg if key not in ("model", "dataset", "dataloader")]:
        del cfg[key]
    cfg.dataloader.train = None
    if swept:
        cfg.model.selector.keep_ratio = 1.0
    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(cfg, Path(folder) / "config.yaml")
        text = (Path(folder) / "config.yaml").read_bytes()
    content = hashlib.sha256(text + repr((size, str(subject.model.device))).encode())
    content.update(Path(subject.weights).read_bytes())
    content.update(instantiate(subject.cfg.dataloader.test.dataset).digest().encode())
    return content.hexdigest()


# --- measuring ------------------------------------------------------------------------------------


def measure(subject: Subject, size: Size, repetitions: int) -> Row:
    """Accuracy over the test set, cost and time at one image size."""
    model = subject.model
    with _counted_tokens(model) as count:
        results = evaluate(model, subject.loader, subject.evaluator)
    flops = count_flops(model, size)
    latency = measure_latency(model, size, repetitions=repetitions)
    return {
        "asked_ratio": _own_ratio(model),
        "keep_ratio": results["keep_ratio"],
        "tokens": count["kept"] / count["images"],
        "all_tokens": count["all"] / count["images"],
        **{name: results["bbox"].get(name) for name in _METRICS},
        "images": results["num_images"],
        "GFLOPs": flops.total,
        "GFLOPs_by_stage": dict(flops.stages),
        "ms": latency.total,
        "ms_by_stage": dict(latency.stages),
        "protocol": dict(latency.protocol),
    }


@contextmanager
def _counted_tokens(model: TokenSparseDetector) -> Iterator[dict[str, float]]:
    """Sums over images: tokens, and those that an encoder layer updates, the mean over layers."""
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


# --- results --------------------------------------------------------------------------------------


class Sheet:
    """`sweep.json`: models with a row for each keep ratio, on disk after every row.

    Args:
        path: the file; what it holds already is kept.
        size: image size of cost and time.
        report: gets a line for each row that was measured.

    Raises:
        ConfigError: the file is something else.
    """

    def __init__(self, path: Path, size: Size, *, report: Callable[[str], None]) -> None:
        self.path = path
        self._report = report
        self._size = size
        self.models: list[dict[str, Any]] = []
        if path.is_file():
            try:
                self.models = json.loads(path.read_text(encoding="utf-8"))["models"]
                _ = [row["asked_ratio"] for model in self.models for row in model["rows"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path} is not the result of a sweep, or of one with an older version. Move "
                    "it away."
                ) from error
        self._entries: dict[int, dict[str, Any]] = {}
        self._protocol: dict[str, Any] | None = None

    def add(self, subject: Subject, *, swept: bool) -> None:
        """Find or make the place of a model.

        Raises:
            ConfigError: the file holds the sweep of another model.
        """
        name = digest(subject, self._size, swept=swept)
        others = [model for model in self.models if model["swept"] and model["digest"] != name]
        if swept and others:
            raise ConfigError(
                f"{self.path} is a sweep of {others[0]['weights']} with other weights or settings. "
                "Give another --output, or move it away."
            )
        found = [model for model in self.models if model["digest"] == name]
        if not found:
            found = [
                {
                    "name": subject.name,
                    "swept": swept,
                    "config": subject.config,
                    "weights": subject.weights,
                    "digest": name,
                    "rows": [],
                }
            ]
            self.models += found
        self._entries[id(subject)] = found[0]

    def complete(self, subject: Subject, ratio: float | None, repetitions: int) -> None:
        """Measure a model at this ratio unless that is done, and write the file."""
        entry = self._entries[id(subject)]
        if any(row["asked_ratio"] == ratio for row in entry["rows"]):
            return
        row = measure(subject, self._size, repetitions)
        if row["protocol"] != self._protocol:
            self._protocol = row["protocol"]
            self._report(" ".join(f"{key}={value}" for key, value in row["protocol"].items()))
        shown = [f"{name} {_text(row, name)}" for name in _COLUMNS]
        self._report(f"{entry['name']}: {'  '.join(shown)}")
        entry["rows"] = sorted([*entry["rows"], row], key=lambda each: each["keep_ratio"])
        write_json(self.path, {"models": self.models})


def _text(row: Row, column: str) -> str:
    value = row[column]
    if value is None:
        return "-"
    return f"{value:.{_DIGITS.get(column, 3)}f}"


def table(models: Sequence[dict[str, Any]]) -> str:
    """One line for each row of each model."""
    lines = [["model", *_COLUMNS]]
    for model in models:
        lines += [
            [model["name"], *(_text(row, name) for name in _COLUMNS)] for row in model["rows"]
        ]
    return format_table(lines, left=())


def draw(models: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot AP against GFLOPs and against milliseconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, column, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("GFLOPs", "ms"),
        ("GFLOPs", "milliseconds per image"),
        strict=True,
    ):
        for model in models:
            rows = model["rows"]
            x, y = [row[column] for row in rows], [row["AP"] for row in rows]
            axes.plot(x, y, marker="o" if model["swept"] else "D", label=model["name"])
            for row in rows if column == "GFLOPs" else []:
                place, text = (row[column], row["AP"]), f"{row['keep_ratio']:.2g}"
                axes.annotate(text, place, (4, 4), textcoords="offset points")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("AP")
    figure.axes[0].legend(title="numbers: keep ratio")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    with atomic_write(path) as file:
        file.write(content.getvalue())

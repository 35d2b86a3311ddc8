"""Evaluate one model at several keep ratios: accuracy, cost and time, as JSON, table and plot.

    tools/sweep_keep_ratio.py --config-file DIR/config.yaml --weights DIR/model_best.pth \\
        --ratios 0.05 0.1 0.2 0.3 0.5
    tools/sweep_keep_ratio.py --config-file F --weights W --fixed A/config.yaml:A/model_best.pth \\
        B/config.yaml:B/model_best.pth --output DIR key=value

Any model whose selector has a keep_ratio will do; `ElasticSelector` trains one for many ratios.
--ratios asks for keep_ratio as configs write it; the column keep_ratio has what the encoder kept,
the mean over its layers and over the images, a little more since a layer keeps whole tokens.
--fixed adds models that were trained for one ratio, or dense ones, as they are. Changes of the
config go for all of them. What `sweep.json` holds already of the same weights and settings is not
measured again, so a sweep that was stopped goes on from there.
Exit codes: 0 done; 2 something given is wrong (one sentence says what).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedet.analysis import count_flops, measure_latency
from sparsedet.checkpoint import atomic_write, load_checkpoint
from sparsedet.config import ConfigError, LazyConfig, instantiate
from sparsedet.data import load_coco, resolve_dataset
from sparsedet.evaluation import evaluate
from sparsedet.loading import load_detector, require_same_classes, trained_class_names
from sparsedet.modeling import AdaptiveSelector, TokenSparseDetector
from sparsedet.modeling.stages import Size

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_RATIOS = ("asked_ratio", "keep_ratio")
_COLUMNS = (*_RATIOS, "tokens", "AP", "AP50", "APs", "APm", "APl", "GFLOPs", "ms")
_DIGITS = {"tokens": 0, "GFLOPs": 2, "ms": 1}
_OVERRIDE = re.compile(r"\+?[\w.\[\]]+=")
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    args = _parser().parse_intermixed_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="F", help=".py or .yaml config")
    parser.add_argument("--weights", required=True, metavar="W", help=".pth or .safetensors file")
    parser.add_argument(
        "--ratios",
        nargs="+",
        default=["0.05", "0.1", "0.2", "0.3", "0.5"],
        metavar="R",
        help="of model.selector.keep_ratio, the mean over the encoder layers; default: %(default)s",
    )
    parser.add_argument(
        "--fixed",
        nargs="+",
        default=[],
        metavar="CONFIG:WEIGHTS",
        help="models to show beside it, evaluated as they are",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: 'sweep' in train.output_dir"
    )
    parser.add_argument(
        "--image-size",
        metavar="HxW",
        help="for GFLOPs and milliseconds (default: that of the test image of median area)",
    )
    parser.add_argument(
        "--repetitions", type=int, default=20, metavar="N", help="timed passes (%(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the configs")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure what is missing, and write all of it.

    Raises:
        ValueError: something given is wrong; nothing has been measured then.
    """
    ratios, pairs, overrides = _read_words(args)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("The plot needs matplotlib. Run: pip install 'sparsedet[plot]'")
    if args.repetitions < 1:
        raise ConfigError(f"--repetitions must be at least 1, got {args.repetitions}.")
    swept = load_subject(args.config_file, args.weights, overrides)
    selector: Any = swept.model.selector
    if not hasattr(selector, "keep_ratio"):
        raise ConfigError(
            f"{type(selector).__name__} has no keep_ratio to sweep. Sweep a model with "
            "TopKSelector or ElasticSelector, and give this one by --fixed."
        )
    _check_ratios(selector, ratios)
    fixed = [load_subject(*pair, overrides) for pair in pairs]
    size = _read_size(args.image_size) if args.image_size else median_size(swept.cfg)
    output = args.output or Path(swept.cfg.train.output_dir) / "sweep"
    sheet = Sheet(output / "sweep.json", size)
    for subject in (swept, *fixed):
        sheet.add(subject, swept=subject is swept)
    for ratio in ratios:
        selector.keep_ratio = ratio
        sheet.complete(swept, ratio, args.repetitions)
    for subject in fixed:
        sheet.complete(subject, _own_ratio(subject.model), args.repetitions)
    print(table(sheet.models))
    draw(sheet.models, output / "sweep.png")
    print(f"{sheet.path}, {output / 'sweep.png'}")


def _read_words(
    args: argparse.Namespace,
) -> tuple[list[float], list[tuple[str, str]], list[str]]:
    """Ratios, pairs of config and weights, and overrides, which may follow either list."""
    overrides = list(args.overrides)
    for words in (args.ratios, args.fixed):
        overrides += [word for word in words if _OVERRIDE.match(word)]
    ratios = {_read_ratio(word) for word in args.ratios if not _OVERRIDE.match(word)}
    pairs = [_read_pair(word) for word in args.fixed if not _OVERRIDE.match(word)]
    return sorted(ratios), pairs, overrides


def _read_ratio(word: str) -> float:
    try:
        ratio = float(word)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= 1:
        raise ConfigError(f"--ratios must be numbers in (0, 1], got {word!r}.")
    return ratio


def _check_ratios(selector: Any, ratios: Sequence[float]) -> None:
    try:
        for ratio in ratios:
            selector.keep_ratio = ratio
    except ValueError as error:
        raise ConfigError(f"--ratios: {error}") from error


def _read_pair(word: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+\.(?:py|ya?ml)):(.+)", word)
    if match is None:
        raise ConfigError(
            f"--fixed must name a config file and weights as CONFIG:WEIGHTS, got {word!r}."
        )
    return match[1], match[2]


def _read_size(word: str) -> Size:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word)
    if match is None:
        raise ConfigError(f"--image-size must be HxW, such as 800x1066, got {word!r}.")
    return int(match[1]), int(match[2])


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
    cfg = LazyConfig.apply_overrides(LazyConfig.load(config), overrides)
    absent = [name for name in ("model", "dataloader", "dataset", "train") if name not in cfg]
    if absent:
        raise ConfigError(f"{config} has no {', '.join(absent)}. Use the config of a training run.")
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
    records = load_coco(cfg.dataset.val_json, None, class_names=cfg.dataset.class_names).records
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
    for path in (subject.weights, cfg.dataset.val_json):
        content.update(Path(path).read_bytes())
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

    Raises:
        ConfigError: the file is something else.
    """

    def __init__(self, path: Path, size: Size) -> None:
        self.path = path
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
            print(" ".join(f"{key}={value}" for key, value in row["protocol"].items()))
        shown = [f"{name} {_text(row, name)}" for name in _COLUMNS]
        print(f"{entry['name']}: {'  '.join(shown)}", flush=True)
        entry["rows"] = sorted([*entry["rows"], row], key=lambda each: each["keep_ratio"])
        with atomic_write(self.path) as file:
            file.write((json.dumps({"models": self.models}, indent=2) + "\n").encode())


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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


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


if __name__ == "__main__":
    sys.exit(main())

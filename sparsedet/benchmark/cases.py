"""What a run compares: configs x overrides x keep ratios x sizes x ways to run them."""

from __future__ import annotations

import argparse
import copy
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsedet.analysis import FlopCount, count_flops
from sparsedet.analysis.passes import Detector
from sparsedet.benchmark.reference import use_grid_sample
from sparsedet.checkpoint import leave_out_pretrained
from sparsedet.config import ConfigError, instantiate
from sparsedet.config import read_config as read_any_config
from sparsedet.modeling import DeformableEncoder, prepare_for_inference
from sparsedet.modeling.stages import MultiScaleFeatures, Size, TokenScores
from sparsedet.structures import pad_images

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
PRECISIONS = ("float32", "bfloat16", "float16")
CLASSES = 80  # where a config takes the number from its data set
OURS, GRID_SAMPLE, PEER = "sparsedet", "grid_sample", "peer"
OBJECTS = 12
SEED = 0
SMALL_MODEL = (
    "model.backbone.name=resnet18", "model.neck.in_channels={res3: 128, res4: 256, res5: 512}",
    "model.embed_dim=32", "model.decoder.num_layers=1", "model.query_initializer.num_queries=10",
    "dataset.short_sides=[64]", "dataset.test_short_side=64",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model and how it runs.

    Attributes:
        config: path of the config.
        overrides: its changes.
        variant: those of the changes that tell it from others.
        keep: "config" = as the config says, "dense" = every layer updates every token, or
            ``keep_ratio`` of the selector.
        image_size: (h, w) of every image.
        batch: images.
        dtype: of the weights, or with ``autocast`` what autocast computes in.
        device: where.
        form: "sparsedet", "grid_sample" = deformable attention by grid_sample, or "peer" = the
            module that ``config`` names.
        autocast: half precision by autocast, with weights in fp32.
        prepared: by ``prepare_for_inference``; grid_sample forms never are.
        graphs: recorded as a CUDA graph and replayed.
        objects: kept tokens lie in blobs as objects do; False = as the scorer's random weights
            have it.
    """

    config: str
    overrides: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    keep: str = "config"
    image_size: Size = (800, 1333)
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    form: str = OURS
    autocast: bool = False
    prepared: bool = False
    graphs: bool = False
    objects: bool = True

    @property
    def name(self) -> str:
        """What tells it from others of its size and batch."""
        parts = [Path(self.config).stem if self.form != PEER else self.config]
        if self.keep != "config":
            parts.append(self.keep if self.keep == "dense" else f"keep {self.keep}")
        parts += self.variant
        parts += [self.form] if self.form == GRID_SAMPLE else []
        if self.dtype != "float32":
            parts.append(f"{self.dtype} autocast" if self.autocast else self.dtype)
        parts += ["CUDA graph"] if self.graphs else []
        return ", ".join(parts)

    def facts(self) -> dict[str, Any]:
        """For the JSON."""
        return {"name": self.name, **asdict(self)}


# --- command line ---------------------------------------------------------------------------------


def image_size(text: str) -> Size:
    """Parse HxW."""
    try:
        height, width = (int(word) for word in text.lower().split("x"))
    except ValueError:
        height = width = 0
    if height < 1 or width < 1:
        raise argparse.ArgumentTypeError(f"must be HxW, such as 800x1333, got {text!r}")
    return height, width


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_arguments(
    parser: argparse.ArgumentParser, *, config: Sequence[str], image_sizes: Sequence[Size]
) -> None:
    """The options that say what is compared."""
    add = parser.add_argument
    add(
        "--config-file",
        nargs="+",
        default=list(config),
        metavar="F",
        help=f"default: {' '.join(config)}",
    )
    add(
        "--variant",
        action="append",
        default=[],
        metavar="'key=value ...'",
        help="overrides to compare; give the option once for each variant, '' for no override",
    )
    add(
        "--keep-ratio",
        nargs="+",
        default=["config"],
        metavar="R",
        help="dense, config, or a keep_ratio of the selector: the share of the tokens that a layer "
        "updates, averaged over the layers",
    )
    add("--image-size", nargs="+", type=image_size, default=list(image_sizes), metavar="HxW")
    add("--batch", nargs="+", type=positive, default=[1], metavar="N", help="images per batch")
    add(
        "--dtype",
        nargs="+",
        choices=PRECISIONS,
        default=["float32"],
        help="dtype of the weights; in training, of autocast",
    )
    add("--device", default="cpu")
    add(
        "--reference",
        action="store_true",
        help="also measure each with grid_sample instead of our operator",
    )
    add("overrides", nargs="*", metavar="key=value", help="overrides of all configs")


def configs_and_changes(args: argparse.Namespace) -> tuple[list[str], tuple[str, ...]]:
    """The configs of the command line, and the changes of all of them, before or after these."""
    configs = [word for word in args.config_file if "=" not in word]
    return configs, (*args.overrides, *(word for word in args.config_file if "=" in word))


def product(args: argparse.Namespace, *, training: bool = False) -> list[Case]:
    """Every case that the options name; a config without a keep ratio is dense once.

    Args:
        args: of the command line.
        training: half precision is that of autocast, and nothing is prepared for inference.

    Raises:
        ConfigError: a config cannot be read, or a keep ratio cannot be had.
    """
    forms = [OURS, GRID_SAMPLE] if args.reference else [OURS]
    graphs = [False, True] if getattr(args, "cuda_graphs", False) else [False]
    configs, changes = configs_and_changes(args)
    variants = [tuple(shlex.split(each)) for each in args.variant] or [()]
    cases = []
    for size, batch in itertools.product(args.image_size, args.batch):
        one = Case("", image_size=size, batch=batch, device=args.device, autocast=training)
        for config, variant in itertools.product(configs, variants):
            overrides = (*changes, *variant)
            own = replace(one, config=config, overrides=overrides, variant=variant)
            keeps = _ratios(config, overrides, args.keep_ratio)
            for keep, dtype, form, graph in itertools.product(keeps, args.dtype, forms, graphs):
                way = replace(own, keep=keep, dtype=dtype, form=form, graphs=graph)
                cases.append(replace(way, prepared=form == OURS and not training))
        for path, dtype, graph in itertools.product(getattr(args, "peer", []), args.dtype, graphs):
            cases.append(replace(one, config=path, form=PEER, dtype=dtype, graphs=graph))
    return cases


def _ratios(config: str, overrides: Sequence[str], ratios: Sequence[str]) -> list[str]:
    cfg = read_config(config, tuple(overrides))
    if not {"keep_ratio", "layer_ratios"} & set(cfg.model.get("selector") or {}):
        return ["config"]
    for ratio in ratios:
        configure(copy.deepcopy(cfg), ratio)
    return list(ratios)


# --- models ---------------------------------------------------------------------------------------


def read_config(config: str, overrides: tuple[str, ...]) -> Any:
    """The config of a model with random weights.

    Raises:
        ConfigError: it cannot be read, or has no model.
    """
    cfg = read_any_config(config, overrides, needs=("model",))
    if "dataset" in cfg and cfg.dataset.get("num_classes") is None:
        cfg.dataset.num_classes = CLASSES
    leave_out_pretrained(cfg)
    return cfg


def configure(cfg: Any, keep: str) -> None:
    """Make the model of a config dense, or set its keep ratio.

    Raises:
        ConfigError: the ratio cannot be had.
    """
    model = cfg.model
    if keep == "config":
        return
    if keep == "dense":
        model.scorer, model.selector, model.encoder_aux_loss = None, None, False
        model.criterion.unmatched = []
        model.encoder._target_ = DeformableEncoder
        for key in ("num_objects", "object_scorer"):
            model.encoder.pop(key, None)
        return
    try:
        model.selector.keep_ratio = float(keep)
    except ValueError:
        raise ConfigError(
            f"--keep-ratio must be dense, config or a number, got {keep!r}."
        ) from None
    try:
        instantiate(model.selector)
    except ConfigError as error:
        raise ConfigError(f"--keep-ratio {keep}: {error}") from error


def build_model(case: Case) -> Detector:
    """A new model with random weights, the same ones for the same case."""
    cfg = read_config(case.config, case.overrides)
    configure(cfg, case.keep)
    torch.manual_seed(SEED)
    model: Detector = instantiate(cfg.model)
    if case.form == GRID_SAMPLE:
        use_grid_sample(model)
    scorers: list[Any] = [getattr(model, "scorer", None)]
    scorers.append(getattr(getattr(model, "regions", None), "scorer", None))
    for scorer in scorers if case.objects else ():
        if scorer is not None:
            scorer.register_forward_hook(ObjectScores())
    if case.prepared:
        model = prepare_for_inference(model)
    return model.to(case.device, torch.float32 if case.autocast else DTYPES[case.dtype])


def load_model(case: Case) -> Detector:
    """The model of a case, ready to detect; cases that differ in how they run it share it."""
    one = replace(case, image_size=(1, 1), batch=1, graphs=False)
    return _load_model(replace(one, dtype="float32", autocast=False) if case.autocast else one)


@lru_cache(maxsize=32)
def _load_model(case: Case) -> Detector:
    return build_model(case).eval()


def noise(case: Case, model: Detector) -> tuple[Tensor, tuple[Size, ...]]:
    """A batch of normalized images of noise, and their sizes."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(case.batch, 3, *case.image_size, generator=generator).to(case.device)
    return pad_images(list(images), model.size_divisibility)


def gflops(case: Case) -> FlopCount | None:
    """Of one image; None where the cost depends on the image."""
    plain = replace(case, batch=1, graphs=False, dtype="float32", autocast=False)
    prepared = case.prepared or case.form == GRID_SAMPLE  # as the model beside it, which is there
    return _gflops(replace(plain, form=OURS, prepared=prepared))


@lru_cache(maxsize=64)
def _gflops(case: Case) -> FlopCount | None:
    try:
        return count_flops(load_model(case), case.image_size)
    except ValueError:
        return None


class ObjectScores:
    """Forward hook of a scorer: its scores become those of objects, in blobs of many sizes.

    With random weights the best tokens would be strewn over the map, as those of a trained scorer
    are not. The scorer runs all the same, and in training its logits keep their gradient. The same
    objects say which tiles regions look at.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}

    def __call__(self, scorer: nn.Module, args: Any, scores: TokenScores) -> TokenScores:
        """Replace the logits."""
        features: MultiScaleFeatures = args[0]
        key = (features.spatial_shapes, features.image_sizes)
        if key not in self._made or features.in_parts:
            self._made[key] = object_scores(features)
        logits = self._made[key].to(scores.logits.dtype)
        if scorer.training:
            logits = logits + (scores.logits - scores.logits.detach())
        return replace(scores, logits=logits)


def object_scores(features: MultiScaleFeatures) -> Tensor:
    """Scores (B, N): minus the distance to the nearest of some objects, in their half sizes.

    Centers are drawn evenly, sides between 3 % and 60 % of the image, small ones more often.
    """
    points = features.reference_points
    generator = torch.Generator().manual_seed(SEED)
    count = (points.shape[0], 1, OBJECTS, 2)
    centers = torch.rand(count, generator=generator).to(points)
    sides = (0.03 * 20 ** torch.rand(count, generator=generator)).to(points)
    nearest = points.new_full(points.shape[:2], float("inf"))
    x, y = (each.contiguous() for each in points.unbind(-1))
    for center, side in zip(centers.unbind(2), (0.5 * sides).unbind(2), strict=True):
        across, down = ((x - center[..., 0]) / side[..., 0], (y - center[..., 1]) / side[..., 1])
        nearest = nearest.minimum(across.square_() + down.square_())
    jitter = torch.rand(points.shape[:2], generator=generator).to(points)
    return -(nearest.sqrt() + 0.05 * jitter)

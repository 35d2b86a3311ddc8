"""Draw the tokens that a detector keeps and the objects that it finds: one PNG per image.

    sparsedet visualize DIR/config.yaml --weights DIR/model_best.pth a.jpg b.png
    sparsedet visualize CONFIG --weights W --scores a.jpg key=value ...
    sparsedet visualize CONFIG --weights W --beside CONFIG2 W2 a.jpg
    sparsedet visualize CONFIG --weights W --figure layers a.jpg
    sparsedet visualize CONFIG --weights W --figure levels --beside CONFIG2 W2 a.jpg

Images pass through the config's test transforms, so they have the same size as in an evaluation.
Cells of kept tokens show the image; the other cells are dimmed. Figures:
  tokens  a panel per level; the color is the number of encoder layers that keep the token
  layers  a panel per encoder layer; the color is the finest level with a kept token
  levels  a panel per level and model, the models side by side
Dots (in `layers` also a second row) mark the object tokens of dual attention. If a model chooses
tiles, two more panels show the chosen tiles and their scores.
Exit codes: 0 done; 2 an input is wrong (one sentence says which).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet.cli.common import add_config, answer, check_folder, make_parser, take_config
from sparsedet.config import ConfigError, check_overrides, read_config

if TYPE_CHECKING:
    from PIL import Image

    from sparsedet.modeling.stages import DetectorOutput
    from sparsedet.predictor import Detections

FIGURES = ("tokens", "layers", "levels")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_config(parser, "IMAGE")
    parser.add_argument("--weights", required=True, metavar="W", help="file, or published weights")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: 'tokens' in train.output_dir"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S", help="default: %(default)s"
    )
    parser.add_argument(
        "--figure", choices=FIGURES, default="tokens", help="what it shows (default: %(default)s)"
    )
    parser.add_argument(
        "--scores", action="store_true", help="with --figure tokens: also draw the token scores"
    )
    parser.add_argument(
        "--beside",
        nargs=2,
        action="append",
        default=[],
        metavar=("F", "W"),
        help="also draw the result of another model (config and weights); may be repeated",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Draw every image.

    Raises:
        ValueError: an input is wrong; nothing has been written then.
    """
    take_config(args, others=True)
    if not args.words:
        raise ConfigError("No image is given. Name one or more image files.")
    if args.scores and args.figure != "tokens":
        raise ConfigError(f"--scores needs --figure tokens, got --figure {args.figure}.")
    check_overrides(args.config_file, args.overrides)
    needed = ("model", "dataloader", "dataset")
    cfg = read_config(args.config_file, args.overrides, needs=needed)
    for path in args.words:
        check_picture(path, cfg.dataset)
    output = args.output or Path(cfg.get("train", {}).get("output_dir", "output")) / "tokens"
    check_folder(output)
    names = distinct_names([(args.config_file, args.weights), *args.beside])
    drawers = [Drawer(cfg, args.weights, name=names[0])]
    drawers += [
        Drawer(read_config(config, needs=needed), weights, name=name)
        for (config, weights), name in zip(args.beside, names[1:], strict=True)
    ]
    if args.figure == "levels":
        require_same_levels(drawers)
    output.mkdir(parents=True, exist_ok=True)
    drawn: set[str] = set()
    for path in args.words:
        views = [drawer(path) for drawer in drawers]
        target = output / f"{_free_name(Path(path).stem, drawn)}.png"
        draw(views, args).save(target)
        for view in views:
            print(f"{path}: {view.summary(args.score_threshold)}: {target}")


def distinct_names(models: Sequence[tuple[str, str]]) -> list[str]:
    """Short names for models: the parts in which the paths of their weights or configs differ.

    Args:
        models: config and weights of each; a single model gets an empty name.
    """
    if len(models) == 1:
        return [""]
    configs, weights = zip(*models, strict=True)
    for paths in (weights, configs):
        if len(set(paths)) == len(paths):
            return _differing_parts(paths)
    return [f"{config} {file}" for config, file in models]


def _differing_parts(paths: Sequence[str]) -> list[str]:
    """The paths without their common first and last parts."""
    parts = [Path(path).parts for path in paths]
    while len({each[0] for each in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [each[1:] for each in parts]
    while len({each[-1] for each in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [each[:-1] for each in parts]
    return ["/".join(each) for each in parts]


def _free_name(stem: str, names: set[str]) -> str:
    """The stem, with a number if an image with the same name was drawn before."""
    number, name = 1, stem
    while name in names:
        number += 1
        name = f"{stem}_{number}"
    names.add(name)
    return name


def check_picture(path: str, dataset: Any) -> None:
    """Raise a DatasetError if a file is missing or is not an image that `dataset` accepts."""
    from sparsedet.data import DatasetError, picture_settings
    from sparsedet.data.images import inspect_image

    header = inspect_image(path, picture_settings(dataset))
    if isinstance(header, str):
        raise DatasetError(f"image file {path!r} cannot be read ({header}).")


def require_same_levels(drawers: Sequence[Drawer]) -> None:
    """Raise a ConfigError if models cannot be compared level by level."""
    strides = {drawer.name: drawer.strides for drawer in drawers}
    if len({tuple(each) for each in strides.values()}) > 1:
        raise ConfigError(
            f"--figure levels needs models with the same strides, got {strides}. Use another "
            "--figure."
        )


@dataclass(frozen=True)
class View:
    """The result of one model on one image."""

    model: str
    file: str
    picture: Image.Image
    output: DetectorOutput
    found: Detections

    @property
    def title(self) -> str:
        """The title of the figure."""
        return f"{self.model}: {self.file}" if self.model else self.file

    def summary(self, threshold: float) -> str:
        """The numbers of detections, kept tokens and tiles, in words."""
        count, total = len(self.found.above(threshold)), self.output.features.num_valid[0]
        share = f"{self.found.keep_ratio:.1%} of {total}"
        pooled = self.output.memory.pooled
        if pooled is not None:
            share += f", pooled: {pooled.counts[0]}"
        prefix = f"{self.model}: " if self.model else ""
        tiles = self.found.tiles
        if tiles is not None:
            share += f", tiles processed: {int(tiles.looked.sum())} of {len(tiles)}"
        return f"{prefix}detections: {count}, tokens kept: {share}"


class Drawer:
    """Runs one model on images."""

    def __init__(self, cfg: Any, weights: str, *, name: str) -> None:
        from sparsedet.engine.launch import resolve_device
        from sparsedet.loading import require_tokens
        from sparsedet.predictor import Predictor

        device = resolve_device(cfg.get("train", {}).get("device", "auto"))
        self.predictor = Predictor(weights, cfg, device=device)
        self.strides = list(require_tokens(self.predictor.model).strides)
        self.name = name

    def __call__(self, path: str) -> View:
        """Run the model on the image in a file."""
        picture = self.predictor.read(path)
        found, output = self.predictor.explain(picture)
        return View(self.name, Path(path).name, picture.to_pillow(), output, found)


def draw(views: Sequence[View], args: argparse.Namespace) -> Image.Image:
    """Draw the figure of one image that the arguments ask for."""
    from sparsedet.visualization import layer_figure, level_figure, stack, token_figure

    first = views[0]
    if args.figure == "levels":
        outputs = {view.model or "model": view.output for view in views}
        return level_figure(first.picture, outputs, title=first.file)
    figures = []
    for view in views:
        given: dict[str, Any] = dict(
            class_names=view.found.class_names,
            score_threshold=args.score_threshold,
            title=view.title,
        )
        parts = (view.picture, view.output, view.found.instances)
        if args.figure == "layers":
            figures.append(layer_figure(*parts, **given))
        else:
            figures.append(token_figure(*parts, **given, show_scores=args.scores))
    return stack(figures)

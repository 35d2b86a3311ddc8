"""Draw which tokens a detector keeps, beside what it finds: one PNG per image.

    sparsedet visualize DIR/config.yaml --weights DIR/model_best.pth a.jpg b.png
    sparsedet visualize CONFIG --weights W --scores a.jpg key=value ...
    sparsedet visualize CONFIG --weights W --beside CONFIG2 W2 a.jpg

The images pass through the config's test transforms, so their size is that of the evaluation. Cells
of kept tokens show the image, other cells are dimmed; the color is the number of encoder layers.
Exit codes: 0 done; 2 an input is wrong (one sentence says which).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet.cli.common import add_config, answer, make_parser, take_config
from sparsedet.config import ConfigError, check_overrides, read_config

if TYPE_CHECKING:
    from PIL import Image


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_intermixed_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add_config(parser, "IMAGE")
    parser.add_argument("--weights", required=True, metavar="W", help=".pth or .safetensors file")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: 'tokens' in train.output_dir"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S", help="default: %(default)s"
    )
    parser.add_argument("--scores", action="store_true", help="also draw the token scores")
    parser.add_argument(
        "--beside",
        nargs=2,
        action="append",
        default=[],
        metavar=("F", "W"),
        help="draw what another model makes of the image below; may be given several times",
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
    check_overrides(args.config_file, args.overrides)
    from sparsedet.visualization import stack

    needed = ("model", "dataloader", "dataset")
    cfg = read_config(args.config_file, args.overrides, needs=needed)
    for path in args.words:
        check_picture(path, cfg.dataset)
    output = args.output or Path(cfg.get("train", {}).get("output_dir", "output")) / "tokens"
    drawers = [Drawer(cfg, args.weights, args=args)]
    drawers += [Drawer(read_config(each, needs=needed), w, args=args) for each, w in args.beside]
    output.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for path in args.words:
        figures, summaries = zip(*(drawer(path) for drawer in drawers), strict=True)
        target = output / f"{_free_name(Path(path).stem, names)}.png"
        stack(figures).save(target)
        for summary in summaries:
            print(f"{path}: {summary}: {target}")


def _free_name(stem: str, names: set[str]) -> str:
    """The stem, with a number where another folder's image of that name was drawn before."""
    number, name = 1, stem
    while name in names:
        number += 1
        name = f"{stem}_{number}"
    names.add(name)
    return name


def check_picture(path: str, dataset: Any) -> None:
    """Raise a DatasetError where a file is not there, or no image that `dataset` lets be read."""
    from sparsedet.data import DatasetError, picture_settings
    from sparsedet.data.images import inspect_image

    header = inspect_image(path, picture_settings(dataset))
    if isinstance(header, str):
        raise DatasetError(f"image file {path!r} cannot be read ({header}).")


class Drawer:
    """Draws what one model makes of images."""

    def __init__(self, cfg: Any, weights: str, *, args: argparse.Namespace) -> None:
        from sparsedet.engine.launch import resolve_device
        from sparsedet.predictor import Predictor

        device = resolve_device(cfg.get("train", {}).get("device", "auto"))
        self.predictor = Predictor(weights, cfg, device=device)
        self.threshold, self.show_scores = args.score_threshold, args.scores
        self.name = f"{weights}: " if args.beside else ""

    def __call__(self, path: str) -> tuple[Image.Image, str]:
        """The figure of one image, and its numbers in words."""
        from sparsedet.visualization import token_figure

        picture = self.predictor.read(path)
        found, output = self.predictor.explain(picture)
        figure = token_figure(
            picture.to_pillow(),
            output,
            found.instances,
            class_names=found.class_names,
            score_threshold=self.threshold,
            title=f"{self.name}{Path(path).name}",
            show_scores=self.show_scores,
        )
        count, total = len(found.above(self.threshold)), output.features.num_valid[0]
        share = f"{found.keep_ratio:.1%} of {total}"
        if output.memory.pooled is not None:
            share += f", pooled: {output.memory.pooled.counts[0]}"
        return figure, f"{self.name}detections: {count}, tokens kept: {share}"

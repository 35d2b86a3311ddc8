"""Draw which tokens a detector keeps, beside what it finds: one PNG per image.

    sparsedet visualize DIR/config.yaml --weights DIR/model_best.pth a.jpg b.png
    sparsedet visualize CONFIG --weights W --scores a.jpg key=value ...
    sparsedet visualize CONFIG --weights W --beside CONFIG2 W2 a.jpg

The images pass through the config's test transforms, so their size is that of the evaluation. A
kept cell shows the image, the others are dim; a color says how many encoder layers keep a cell.
Exit codes: 0 done; 2 something given is wrong (one sentence says what).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsedet.cli.common import add_config, answer, make_parser, take_config
from sparsedet.config import ConfigError, check_overrides, instantiate, read_config

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
        ValueError: something given is wrong; nothing has been written then.
    """
    take_config(args, others=True)
    if not args.words:
        raise ConfigError("No image is given. Name one or more image files.")
    check_overrides(args.config_file, args.overrides)
    from sparsedet.visualization import stack

    records = [image_record(word) for word in args.words]
    cfg = load_config(args.config_file, args.overrides)
    output = args.output or Path(cfg.get("train", {}).get("output_dir", "output")) / "tokens"
    drawers = [Drawer(cfg, args.weights, args=args)]
    drawers += [Drawer(load_config(path, ()), weights, args=args) for path, weights in args.beside]
    output.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for record in records:
        figures, summaries = zip(*(drawer(record) for drawer in drawers), strict=True)
        path = output / f"{_free_name(Path(record['file_name']).stem, names)}.png"
        stack(figures).save(path)
        for summary in summaries:
            print(f"{record['file_name']}: {summary}: {path}")


def _free_name(stem: str, names: set[str]) -> str:
    """The stem, with a number where another folder's image of that name was drawn before."""
    number, name = 1, stem
    while name in names:
        number += 1
        name = f"{stem}_{number}"
    names.add(name)
    return name


def image_record(path: str) -> dict[str, Any]:
    """The record of an image without annotations; EXIF may turn it.

    Raises:
        DatasetError: it is not there, or no image.
    """
    from sparsedet.data import DatasetError
    from sparsedet.data.images import inspect_image

    header = inspect_image(path)
    if isinstance(header, str):
        raise DatasetError(f"image file {path!r} cannot be read ({header}).")
    width, height = header.size
    if header.needs_turning(height, width):
        width, height = height, width
    return dict(file_name=path, width=width, height=height, image_id=0, annotations=[])


def load_config(path: str, overrides: Sequence[str]) -> Any:
    """The config with overrides and the names of its classes.

    Raises:
        ConfigError: it cannot be read, or lacks what is needed here.
        DatasetError: the annotation file that has the classes cannot be read.
    """
    from sparsedet.data import resolve_classes
    from sparsedet.loading import require_same_classes

    cfg = read_config(path, overrides, needs=("model", "dataloader", "dataset"))
    dataset = cfg.dataset
    resolve_classes(cfg)
    if dataset.num_classes is None:
        paths = [dataset[key] for key in ("train_json", "val_json") if dataset[key] is not None]
        raise ConfigError(
            f"{path} does not say which classes there are, and {' and '.join(paths)} do not "
            "exist. Use the config.yaml of the training run, or set dataset.val_json."
        )
    if dataset.class_names is not None:
        require_same_classes(cfg)
    return cfg


class Drawer:
    """Draws what one model makes of images."""

    def __init__(self, cfg: Any, weights: str, *, args: argparse.Namespace) -> None:
        from sparsedet.loading import load_detector

        self.model = load_detector(cfg, weights)
        self.mapper = instantiate(cfg.dataloader.test.mapper)
        self.class_names = cfg.dataset.class_names
        self.threshold, self.show_scores = args.score_threshold, args.scores
        self.name = f"{weights}: " if args.beside else ""

    def __call__(self, record: dict[str, Any]) -> tuple[Image.Image, str]:
        """The figure of one image, and its numbers in words."""
        import torch
        from PIL import Image

        from sparsedet.data.images import read_image
        from sparsedet.visualization import token_figure

        sample = self.mapper(record, random.Random(0))
        del sample["instances"]  # nothing is known of this image: a scorer that looks must say so
        with torch.inference_mode():
            batch = self.model.preprocess([sample])
            output = self.model.detect(batch.images, batch.image_sizes)
            instances = self.model.postprocess(output, [sample])[0]["instances"]
        size = record["width"], record["height"]
        picture = Image.fromarray(read_image(record["file_name"], size).permute(1, 2, 0).numpy())
        figure = token_figure(
            picture,
            output,
            instances,
            class_names=self.class_names,
            score_threshold=self.threshold,
            title=f"{self.name}{Path(record['file_name']).name}",
            show_scores=self.show_scores,
        )
        found = int((instances.scores >= self.threshold).sum())
        share, total = output.keep_ratios[0], output.features.num_valid[0]
        return figure, f"{self.name}detections: {found}, tokens kept: {share:.1%} of {total}"

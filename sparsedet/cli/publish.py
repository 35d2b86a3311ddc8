"""Write a trained detector to a folder that loads anywhere, or push it to Hugging Face.

    sparsedet publish output/mine shared/mine --license apache-2.0 --picture photo.jpg
    sparsedet publish output/mine --push owner/mine            write and upload in one step
    sparsedet publish shared/mine --push owner/mine            upload a folder as it is
    sparsedet publish output/mine/model_final.pth shared/last  weights other than the best

The folder has model.safetensors, config.yaml without paths of this machine, detections.jpg and
README.md, a model card with the results, the cost, the data and the training settings of the run.
Check these files before you upload them: without --picture, detections.jpg shows a picture of the
validation set. The card gets milliseconds if you first run
`sparsedet analyze DIR/config.yaml --latency --output DIR/analysis.json`.
A published model loads by its name: `sparsedet predict owner/mine photo.jpg`.
Exit codes: 0 done; 2 an input is wrong, or the upload failed (one sentence says which).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from sparsedet.cli.common import add_trust, answer, make_parser
from sparsedet.config import ConfigError


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse the command line and run."""
    return answer(run, _parser(prog).parse_args(argv))


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = make_parser(__doc__, prog)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, checkpoint, or folder that publish wrote")
    add("folder", nargs="?", type=Path, metavar="FOLDER", help="folder to write; new or empty")
    add("--push", metavar="NAME", help="upload to Hugging Face as owner/model")
    add(
        "--name",
        metavar="NAME",
        help="the model's name in the card (default: the one in --push, or the name of FOLDER)",
    )
    add("--private", action="store_true", help="make the model private if it is new")
    add("--license", metavar="ID", help="apache-2.0, mit, other, ...")
    add("--dataset", metavar="NAME", help="name of the data set, such as owner/dataset")
    add(
        "--picture",
        default="auto",
        metavar="FILE",
        help="picture for the card, or none (default: one of the validation set)",
    )
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Write, upload and print where the model is.

    Raises:
        ValueError: an input is wrong, or the upload failed.
    """
    from sparsedet.hub import push_to_hub, require_name, save_pretrained

    if args.folder is None and args.push is None:
        raise ConfigError("Nothing to do. Name a FOLDER to write, or add --push owner/model.")
    if args.name is not None and args.folder is None:
        raise ConfigError("--name needs a FOLDER. Name one, or leave --name out.")
    if args.private and args.push is None:
        raise ConfigError("--private needs --push. Add --push, or leave --private out.")
    if args.push:
        require_name(args.push)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sparsedet").setLevel(logging.INFO)
    picture = None if args.picture == "none" else args.picture
    given = {"picture": picture, "license": args.license, "dataset": args.dataset}
    if args.folder is None:
        where = push_to_hub(args.run, args.push, private=args.private, **given)
    else:
        made = save_pretrained(args.run, args.folder, name=args.name or args.push, **given)
        print(f"the model is in {made}")
        where = args.push and push_to_hub(made, args.push, private=args.private)
    if where:
        print(f"the model is at {where}")

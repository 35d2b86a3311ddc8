"""Write a trained detector as a folder that loads anywhere, or push it to Hugging Face.

    sparsedet publish output/mine shared/mine --license apache-2.0 --picture photo.jpg
    sparsedet publish output/mine --push owner/mine            write and upload at once
    sparsedet publish shared/mine --push owner/mine            upload a folder as it is
    sparsedet publish output/mine/model_final.pth shared/last  other weights than the best

The folder has model.safetensors, config.yaml without paths of this machine, detections.jpg and
README.md, a model card with the results, the cost, the data and the training of the run. Look at
them before they are public: --picture is one of the validation set if nothing else is given. The
milliseconds are those that `sparsedet analyze DIR/config.yaml --latency --output DIR/analysis.json`
has left. What is published loads by its name: `sparsedet predict owner/mine photo.jpg`.
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
    add("run", metavar="RUN", help="folder of a run, a checkpoint, or a folder that was written")
    add("folder", nargs="?", type=Path, metavar="FOLDER", help="where to write; new or empty")
    add("--push", metavar="NAME", help="upload it as owner/model")
    add(
        "--name", metavar="NAME", help="what the card calls it (default: NAME of --push, or FOLDER)"
    )
    add("--private", action="store_true", help="of a model that --push makes: hide it from others")
    add("--license", metavar="ID", help="such as apache-2.0, mit or other")
    add("--dataset", metavar="NAME", help="of the data, such as owner/dataset")
    add("--picture", default="auto", metavar="FILE", help="that the card shows, or none")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Write, upload and tell where.

    Raises:
        ValueError: an input is wrong, or the upload failed.
    """
    from sparsedet.hub import push_to_hub, save_pretrained

    if args.folder is None and args.push is None:
        raise ConfigError("Name a folder to write, or a model to push by --push owner/model.")
    if args.name is not None and args.folder is None:
        raise ConfigError("--name goes with FOLDER. Name a folder, or leave --name out.")
    if args.private and args.push is None:
        raise ConfigError("--private goes with --push. Add it, or leave --private out.")
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

"""Train, evaluate and run token-sparse detection transformers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from sparsedet import __version__
from sparsedet.config.naming import nearest

# name: module with main(argv, prog), and what it does
COMMANDS = {
    "train": ("sparsedet.cli.train", "train a detector and evaluate it"),
    "eval": ("sparsedet.cli.eval", "evaluate weights on a validation set"),
    "report": ("sparsedet.cli.report", "write an HTML report of training runs"),
    "predict": ("sparsedet.cli.predict", "find objects in pictures and videos"),
    "export": ("sparsedet.cli.export", "write a detector as a file that runs elsewhere"),
    "publish": ("sparsedet.cli.publish", "write a model and its card, or push it to Hugging Face"),
    "analyze": ("sparsedet.cli.analyze", "measure parameters, GFLOPs, time and kept tokens"),
    "visualize": ("sparsedet.cli.visualize", "draw kept tokens and detections"),
    "explain": ("sparsedet.cli.explain", "write an HTML page that shows what detectors keep"),
    "sweep": ("sparsedet.cli.sweep", "measure accuracy and cost at several keep ratios"),
    "sweep-config": ("sparsedet.cli.sweep_config", "train a grid of overrides with several seeds"),
    "calibrate": ("sparsedet.cli.calibrate", "fit an adaptive selector to trained weights"),
    "check-data": ("sparsedet.cli.check_data", "check a data set and report its contents"),
    "convert-data": ("sparsedet.cli.convert_data", "convert a data set to COCO's format"),
    "convert-weights": ("sparsedet.cli.convert_weights", "convert published weights to our names"),
    "weights": ("sparsedet.cli.weights", "list the published weights that can be used by name"),
    "benchmark": ("sparsedet.cli.benchmark", "measure speed and memory"),
    "configs": ("sparsedet.cli.configs", "list the configs that come with the package"),
    "components": ("sparsedet.cli.components", "list the components that a config can use"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        name, *rest = words
        if name in COMMANDS:
            return import_module(COMMANDS[name][0]).main(rest, prog=f"sparsedet {name}")
        print(f"error: there is no command '{name}'. {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    parser = _parser()
    parser.parse_args(words)
    parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {about}" for name, (_, about) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="sparsedet",
        usage="sparsedet COMMAND ...",
        description=__doc__,
        epilog="\n".join(["commands:", *lines, "", "Run sparsedet COMMAND --help for details."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sparsedet {__version__}")
    return parser

"""Somebody else's models before and after a change to them, such as another op: in turns.

`--models` names a mapping: for each name a callable that is given (h, w), the batch and
`small=False`. What it returns has `model`, `predict()`, `step()` (forward and backward) and
`swap()`, a context within which the model is the changed one. By default these are the models of
transformers whose deformable attention ours can take the place of.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sparsedet.analysis import Clock, Parts, round_ratio, summarize, time_in_turns, timed
from sparsedet.benchmark.cases import image_size, positive
from sparsedet.benchmark.execution import Row, Turns
from sparsedet.benchmark.reference import locate
from sparsedet.benchmark.report import Table, number, print_table, size_text, spread

MODELS = "sparsedet.interop.transformers.models:MODELS"
BEFORE, AFTER = "before", "after"
WHAT = ("predict", "step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add = parser.add_argument
    add("--models", default=MODELS, metavar="MODULE:MAPPING", help="(%(default)s)")
    add("--only", nargs="+", default=[], metavar="NAME", help="these of them")
    add("--small", action="store_true", help="with few layers and channels")
    add("--batch", type=positive, default=1)
    parser.set_defaults(device="cpu")
    add("--image-size", type=image_size, default=(800, 1066), metavar="HxW")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time the models one after the other, each before and after in turns.

    Raises:
        ValueError: a name is not among the models.
    """
    models: Any = locate(args.models, "--models")
    unknown = set(args.only) - set(models)
    if unknown:
        raise ValueError(f"--only must be among {', '.join(models)}, got {sorted(unknown)}.")
    rows: list[Row] = []
    for name in args.only or models:
        rows += _time(name, models[name], args)
        args.record.save({"rows": rows})
        print_table(table({"rows": rows[-len(WHAT) :]}))
    return {"rows": rows}


def _time(name: str, make: Callable[..., Any], args: argparse.Namespace) -> list[Row]:
    torch.manual_seed(0)
    case = make(args.image_size, args.batch, small=args.small)
    facts = {"name": name, "image_size": args.image_size, "batch": args.batch}
    rows = []
    for what in WHAT:
        call = getattr(case, what)
        outputs = {kind: _within(case, kind, call) for kind in (BEFORE, AFTER)}
        passes = {kind: _pass(case, kind, call) for kind in (BEFORE, AFTER)}
        turns = Turns.of(args)
        timings = time_in_turns(
            passes, seconds=turns.seconds, rounds=turns.rounds, warm_up=turns.warm_up
        )
        row = facts | {"what": what, "difference": _difference(*outputs.values())}
        row |= {kind: asdict(summarize(parts)["total"]) for kind, parts in timings.items()}
        rows.append(row | {"speedup": round_ratio(timings[BEFORE], timings[AFTER])})
    del case
    gc.collect()
    return rows


def _within(case: Any, kind: str, call: Callable[[], Any]) -> Any:
    with case.swap() if kind == AFTER else nullcontext():
        return call()


def _pass(case: Any, kind: str, call: Callable[[], Any]) -> Callable[[], Parts]:
    """A timed call; going there and back again does not count."""
    run = timed(call, Clock(torch.device("cpu")))

    def parts() -> Parts:
        return _within(case, kind, run)

    return parts


def _difference(before: Tensor | list[Tensor], after: Tensor | list[Tensor]) -> float:
    """The largest one of numbers that are finite, relative to those above 1."""
    befores = [before] if isinstance(before, Tensor) else before
    afters = [after] if isinstance(after, Tensor) else after
    found = [0.0]
    for one, other in zip(befores, afters, strict=True):
        one, other = one.double(), other.double()
        apart = (one - other).abs() / one.abs().clamp(min=1)
        found += [float(apart[apart.isfinite()].max())] if apart.isfinite().any() else []
    return max(found)


def table(result: dict[str, Any]) -> Table:
    """Two lines for each model."""
    head = ["model", "size", "what", "before ms (p10..p90)", "after ms (p10..p90)"]
    head += ["before / after", "largest difference"]
    return [
        head,
        *(
            [
                row["name"],
                size_text(row["image_size"]),
                row["what"],
                spread(row[BEFORE]),
                spread(row[AFTER]),
                number(row["speedup"]),
                f"{row['difference']:.1e}",
            ]
            for row in result["rows"]
        ),
    ]

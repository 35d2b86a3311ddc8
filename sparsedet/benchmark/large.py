"""Large pictures, system by system: seconds by stage, GFLOPs, tokens, peak memory, ratios.

The systems of a size take turns. Each has a process of its own, whose peak memory is that of the
very passes that are timed; a small picture has gone through it before. `slices` is the dense model
on the overlapping tiles of the predictor, `half` the dense model on the picture at half its sides.
Weights are random, so shares are fixed ones: which tiles and tokens they are, made-up objects say.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sparsedet.analysis import FIRST_STAGE, Clock, Parts, round_ratio, stage_marks, summarize, timed
from sparsedet.benchmark.cases import (
    SEED,
    SMALL_MODEL,
    Case,
    configure,
    gflops,
    image_size,
    load_model,
    noise,
    positive,
    read_config,
)
from sparsedet.benchmark.execution import Row, Turns, inference
from sparsedet.benchmark.memory import Worker
from sparsedet.benchmark.report import Table, number, print_table, reason, size_text, without_empty
from sparsedet.config import ConfigError
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import DetectorOutput, Size
from sparsedet.predictor import Detections, Picture
from sparsedet.predictor.detections import import_supervision
from sparsedet.predictor.tiles import Slicer

HALF, DENSE, FOCUS, SLICES, GLANCE = "half", "dense", "focus", "slices", "glance"
CONFIGS = {
    name: f"projects/large_images/configs/{model}_r50_2560_12ep.py"
    for name, model in {
        HALF: "dino", DENSE: "dino", FOCUS: "focus_detr", SLICES: "dino",
        GLANCE: "glance_and_look",
    }.items()
}  # fmt: skip
MERGE = "merge"
STAGES = ("glance", "look", "backbone", "neck", "scorer", "encoder", "query_initializer", "decoder")
STAGES += (MERGE,)
WARM_UP = (256, 256)


@dataclass(frozen=True)
class LargeCase(Case):
    """One system and a size.

    Attributes:
        system: which of ``CONFIGS``.
        label: its name.
        tile: side of the slices in pixels, and ``overlap`` the share of it that two have in common.
    """

    system: str = DENSE
    label: str = "DINO"
    tile: int = 1024
    overlap: float = 0.2

    @property
    def name(self) -> str:
        """What tells it from others of its group."""
        return self.label


# --- what is compared -----------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add = parser.add_argument
    add("--systems", nargs="+", choices=tuple(CONFIGS), default=list(CONFIGS))
    add(
        "--image-size", nargs="+", type=image_size, default=[(2560, 2560), (2250, 4000)],
        metavar="HxW",
    )  # fmt: skip
    add(
        "--keep-ratio", nargs="+", default=["0.3", "0.1"], metavar="R",
        help="of focus: share of the tokens that a layer updates (%(default)s)",
    )  # fmt: skip
    add(
        "--look-ratio", nargs="+", type=float, default=[0.1], metavar="R",
        help="of glance: share of the tiles that are looked at (%(default)s)",
    )  # fmt: skip
    add(
        "--look-tiles", type=positive, metavar="N",
        help="of glance: so many tiles at every size, instead of a share",
    )  # fmt: skip
    add("--tile", type=int, default=1024, help="side of slices in pixels (%(default)s)")
    add("--overlap", type=float, default=0.2, help="of slices, share of a side (%(default)s)")
    add("--small", action="store_true", help="with a small backbone, few layers and channels")
    add("--resume", action="store_true", help="keep the sizes that the file of --json has")
    add("--device", choices=("cpu",), default="cpu", help="memory is that of a process")
    add("overrides", nargs="*", metavar="key=value", help="changes of all configs")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure size by size, and write what is there after every pass.

    Raises:
        ValueError: an input is wrong.
    """
    groups = [list(_cases(args, size)) for size in args.image_size]
    _check(args, [case for group in groups for case in group])
    earlier = args.record.earlier() if args.resume else []
    rows: list[Row] = []

    def save(more: list[Row]) -> None:
        args.record.save({"rows": rows + more})

    for group in groups:
        known = [row for case in group for row in earlier if _is_of(row, case)]
        if len(known) < len(group):
            known = _measure(group, Turns.of(args), save)
        rows += known
        save([])
        for each in filter(None, (make({"rows": known}) for make in TABLES)):
            print_table(each)
    return {"rows": rows}


def _cases(args: argparse.Namespace, size: Size) -> Iterator[LargeCase]:
    changes = (*(SMALL_MODEL if args.small else ()), *args.overrides)
    base = LargeCase(
        "", changes, image_size=size, prepared=True, tile=args.tile, overlap=args.overlap
    )
    for system in args.systems:
        case = replace(base, system=system, config=CONFIGS[system])
        if system == HALF:
            half = (max(size[0] // 2, 1), max(size[1] // 2, 1))
            yield replace(case, label="DINO at half the sides", image_size=half)
        elif system == FOCUS:
            for ratio in args.keep_ratio:
                yield replace(case, label=f"Focus-DETR, keep {ratio}", keep=ratio)
        elif system == GLANCE:
            yield from _glances(case, args)
        else:
            yield replace(case, label="DINO" if system == DENSE else "DINO on slices")


def _glances(case: LargeCase, args: argparse.Namespace) -> Iterator[LargeCase]:
    ratios, labels = args.look_ratio, [f"{100 * ratio:g} %" for ratio in args.look_ratio]
    if args.look_tiles:
        tile = read_config(case.config, case.overrides).model.regions.tile
        tiles = -(-case.image_size[0] // tile) * -(-case.image_size[1] // tile)
        ratios = [min((args.look_tiles - 0.5) / tiles, 1.0)]  # of which one tile more is kept
        labels = [tile_count(args.look_tiles)]
    for ratio, label in zip(ratios, labels, strict=True):
        changed = (*case.overrides, f"model.regions.look_ratio={ratio}")
        yield replace(case, label=f"glance and look, {label}", overrides=changed)


def tile_count(number: int) -> str:
    """Tiles in words."""
    return f"{number} tile" + ("s" if number > 1 else "")


def _check(args: argparse.Namespace, cases: Sequence[LargeCase]) -> None:
    for ratio in args.look_ratio:
        if not 0 < ratio <= 1:
            raise ConfigError(f"--look-ratio must be in (0, 1], got {ratio:g}.")
    for case in cases:
        configure(read_config(case.config, case.overrides), case.keep)
    if SLICES in args.systems:
        try:
            import_supervision()
        except ImportError as error:
            raise ConfigError(f"--systems slices: {error}") from None
        Slicer(lambda _: [], args.tile, overlap=args.overlap, whole=False, batch_size=1)


def _is_of(row: Row, case: LargeCase) -> bool:
    """Whether a row of an earlier run is a whole measurement of a case."""
    facts = {**case.facts(), "image_size": list(case.image_size)}
    return "ms" in row and not row["unfinished"] and all(
        row.get(key) == (list(value) if isinstance(value, tuple) else value)
        for key, value in facts.items()
    )  # fmt: skip


# --- one pass -------------------------------------------------------------------------------------


def prepare(case: LargeCase) -> Callable[[], Row]:
    """Passes of a system, after one of a small picture; for a process of its own.

    A pass returns ``parts``, its milliseconds by stage, and what else is known of it.
    """
    model: Any = load_model(case)
    with torch.inference_mode():
        model.detect(*noise(replace(case, image_size=WARM_UP), model))
    return (_Slices if case.system == SLICES else _Whole)(case, model)


class _Whole:
    """``detect`` on the whole picture."""

    first = FIRST_STAGE

    def __init__(self, case: LargeCase, model: TokenSparseDetector) -> None:
        self.case, self.model, self.clock = case, model, Clock(torch.device(case.device))
        self._marks = ExitStack()  # as long as this lives
        self._marks.enter_context(stage_marks(model, self.clock))
        self.outputs: list[Row] = []
        self._run = timed(inference(case, self._make_call()), self.clock, self.first)

    def _make_call(self) -> Callable[[], object]:
        images, sizes = noise(self.case, self.model)
        return lambda: self._keep(self.model.detect(images, sizes))

    def _keep(self, output: DetectorOutput) -> DetectorOutput:
        self.outputs.append(_counts(output))
        return output

    def __call__(self) -> Row:
        self.outputs.clear()
        parts = self._run()
        sizes = [each.pop("size") for each in self.outputs]
        facts = {key: sum(each[key] for each in self.outputs) for key in self.outputs[0]}
        return {"parts": self._named(parts), "gflops": self._costs(sizes), **facts}

    def _costs(self, sizes: Sequence[Size]) -> Parts | None:
        """GFLOPs by stage; None where they depend on the picture."""
        costs = [gflops(replace(self.case, image_size=size)) for size in sizes]
        stages = [cost.stages for cost in costs if cost is not None]
        if len(stages) < len(costs):
            return None
        total = {name: sum(each[name] for each in stages) for name in stages[0]}
        return {**self._named(total), "total": sum(total.values())}

    def _named(self, stages: Parts) -> Parts:
        """The backbone of regions sees the glance: that is its name here."""
        if self.model.regions is None:
            return stages
        return {"glance" if name == FIRST_STAGE else name: x for name, x in stages.items()}


class _Slices(_Whole):
    """``detect`` on overlapping tiles, one at a time, as the predictor does it."""

    first = MERGE

    def _make_call(self) -> Callable[[], object]:
        case, generator = self.case, torch.Generator().manual_seed(SEED)
        pixels = torch.randint(256, (3, *case.image_size), generator=generator, dtype=torch.uint8)
        picture = Picture(pixels)
        slicer = Slicer(self._detect, case.tile, overlap=case.overlap, whole=False, batch_size=1)
        return lambda: slicer(picture)

    def _detect(self, pictures: list[Picture]) -> list[Detections]:
        samples = [{"image": each.pixels} for each in pictures]
        batch = self.model.preprocess(samples)
        self.clock.mark(FIRST_STAGE)
        output = self._keep(self.model.detect(batch.images, batch.image_sizes))
        self.clock.mark(MERGE)
        names = tuple(map(str, range(self.model.num_classes)))
        found = []
        for picture, result in zip(pictures, self.model.postprocess(output, samples), strict=True):
            instances = result["instances"]
            found.append(
                Detections(
                    boxes_xyxy=instances.pred_boxes.tensor.numpy(),
                    scores=instances.scores.numpy(),
                    labels=instances.pred_classes.numpy(),
                    class_names=names,
                    image_size=picture.size,
                    keep_ratio=result["keep_ratio"],
                )
            )
        return found


def _counts(output: DetectorOutput) -> Row:
    """What one picture had to compute; tokens of absent cells are not counted."""
    kept = [selection.counts[0] for selection in output.selections]
    counts = {
        "size": output.features.image_sizes[0],
        "passes": 1,
        "tokens": output.features.num_valid[0],
        "kept_tokens": sum(kept) / len(kept),
    }
    if output.glance is None:
        return counts
    tiles, looked = output.glance.tiles.num_valid[0], output.glance.looked.counts[0]
    return {**counts, "tiles": tiles, "looked_tiles": looked}


# --- in turns -------------------------------------------------------------------------------------


def _measure(
    cases: Sequence[LargeCase], turns: Turns, save: Callable[[list[Row]], None]
) -> list[Row]:
    """Rows of the cases, whose passes take turns; one that fails leaves the others."""
    passes: dict[str, list[Row]] = {case.name: [] for case in cases}
    errors: dict[str, str] = {}
    workers = {case.name: Worker(prepare, case) for case in cases}

    def attempt(case: LargeCase, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            errors[case.name] = reason(error)
            print(f"failed: {case.name}: {errors[case.name]}", file=sys.stderr)

    try:
        for case in cases:
            attempt(case, workers[case.name].wait)
        for counted in _rounds(turns):
            order = [case for case in cases if case.name not in errors]
            random.Random(sum(map(len, passes.values()))).shuffle(order)
            for case in order:
                answer = attempt(case, workers[case.name])
                if answer is None or not counted:
                    continue
                found, memory = answer
                passes[case.name].append({**found, "memory": memory})
                _report(case, passes[case.name][-1])
                save(_rows(cases, passes, errors, unfinished=True))
    finally:
        for worker in workers.values():
            worker.close()
    return _rows(cases, passes, errors, unfinished=False)


def _rounds(turns: Turns) -> Iterator[bool]:
    """For each round, whether it counts."""
    yield from [False] * turns.warm_up
    end, done = time.perf_counter() + turns.seconds, 0
    while done < turns.rounds or time.perf_counter() < end:
        yield True
        done += 1


def _report(case: LargeCase, found: Row) -> None:
    seconds, peak = sum(found["parts"].values()) / 1e3, found["memory"]["peak_mb"]
    size = size_text(case.image_size)
    print(f"{size} {case.name}: {seconds:.2f} s, {peak:.0f} MB", flush=True)


# --- figures --------------------------------------------------------------------------------------


def _rows(
    cases: Sequence[LargeCase],
    passes: dict[str, list[Row]],
    errors: dict[str, str],
    *,
    unfinished: bool,
) -> list[Row]:
    """A row for each case that has run, or has failed."""
    done = {name: found for name, found in passes.items() if found and name not in errors}
    references = {case.system: case.name for case in cases if case.name in done}  # the last of each
    references.pop(GLANCE, None)
    rows = []
    for case in cases:
        row = {**case.facts(), "unfinished": unfinished}
        if case.name in errors:
            rows.append({**row, "error": errors[case.name]})
        elif case.name in done:
            own = done[case.name]
            others = {name: done[name] for name in references.values()}
            row |= {"memory_over": {name: _peak(own) / _peak(x) for name, x in others.items()}}
            if SLICES in references:  # what they find, so what is joined, is a matter of weights
                name = references[SLICES]
                others[f"{name} without {MERGE}"] = [_without_merge(x) for x in done[name]]
            row |= {"time_over": {name: _time_ratio(own, x) for name, x in others.items()}}
            rows.append(row | _figures(own))
    return rows


def _figures(passes: list[Row]) -> Row:
    """Of the passes of a case: milliseconds by stage, memory, and what all of them computed."""
    timings = dict(summarize([each["parts"] for each in passes]))
    facts = {key: x for key, x in passes[0].items() if key != "parts"}
    facts["memory"] = {**facts["memory"], "peak_mb": _peak(passes)}
    total = asdict(timings.pop("total"))
    return {"ms": total, "parts": {name: asdict(x) for name, x in timings.items()}, **facts}


def _without_merge(found: Row) -> Row:
    return {**found, "parts": {name: x for name, x in found["parts"].items() if name != MERGE}}


def _peak(passes: list[Row]) -> float:
    return passes[-1]["memory"]["peak_mb"]


def _time_ratio(passes: list[Row], others: list[Row]) -> float:
    """The median over the rounds that both have run."""
    rounds = min(len(passes), len(others))
    first, second = ([each["parts"] for each in x[:rounds]] for x in (passes, others))
    return round_ratio(first, second)


def table(result: dict[str, Any]) -> Table:
    """Seconds of a picture by stage, and what it costs else."""
    head = ["system", "size", "s", "rounds", *(stage.replace("_", " ") for stage in STAGES)]
    head += ["GFLOPs", "tokens", "kept tokens", "tiles", "slices", "before MB", "peak MB"]
    return without_empty([head, *map(_line, result["rows"])])


def _line(row: Row) -> list[str]:
    place = [row["name"], size_text(row["image_size"])]
    if "error" in row:
        return [*place, "failed", *[""] * (len(STAGES) + 8)]
    stages = [row["parts"].get(stage) for stage in STAGES]
    seconds = [None if stage is None else stage["median"] / 1e3 for stage in stages]
    return [
        *place,
        number(row["ms"]["median"] / 1e3),
        str(row["ms"]["passes"]),
        *map(number, seconds),
        number((row["gflops"] or {}).get("total"), 0),
        str(row["tokens"]),
        number(row["kept_tokens"], 0),
        f"{row['looked_tiles']} of {row['tiles']}" if "tiles" in row else "",
        str(row["passes"]) if row["system"] == SLICES else "",
        number(row["memory"]["before_mb"], 0),
        number(row["memory"]["peak_mb"], 0),
    ]


def ratio_table(result: dict[str, Any]) -> Table:
    """Time and peak memory as shares of those of other systems; empty where there are none."""
    rows = [row for row in result["rows"] if "error" not in row]
    keys = {"time": "time_over", "memory": "memory_over"}
    columns = [
        (what, name)
        for what, key in keys.items()
        for name in dict.fromkeys(name for row in rows for name in row[key])
    ]
    if not columns:
        return []
    head = ["system", "size", *(f"{what} / {name}" for what, name in columns)]
    lines = [
        [row["name"], size_text(row["image_size"])]
        + [number(row[keys[what]].get(name)) for what, name in columns]
        for row in rows
    ]
    return [head, *lines]


TABLES = (table, ratio_table)

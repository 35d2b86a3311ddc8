"""Models on large pictures: seconds by stage, GFLOPs, tokens, peak memory.

The systems take turns at each size. Each has a process of its own, whose peak memory is that of the
timed passes; the only warm-up is a small picture. `slices` is the dense model on the overlapping
tiles of the predictor, `half` the dense model on the picture at half its sides. Weights are random,
so the shares of tiles and tokens are fixed, and artificial objects determine which ones are chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sparsedet.analysis import FIRST_STAGE, Clock, Parts, stage_marks, summarize, timed
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
from sparsedet.benchmark.execution import inference, turns_of
from sparsedet.benchmark.memory import Worker, take_turns
from sparsedet.benchmark.model import token_counts
from sparsedet.benchmark.report import Row, Table, number, print_table, size_text, without_empty
from sparsedet.config import ConfigError
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
OVERLAP = 0.2  # of slices


@dataclass(frozen=True)
class LargeCase(Case):
    """One system and a size.

    Attributes:
        system: which of ``CONFIGS``.
        label: its name.
        tile: side of the slices in pixels.
    """

    system: str = DENSE
    label: str = "DINO"
    tile: int = 1024

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
        help="for focus: share of the tokens that a layer updates (0.3 0.1)",
    )  # fmt: skip
    add(
        "--look-ratio", nargs="+", type=float, default=[0.1], metavar="R",
        help="for glance: share of the tiles that are chosen (0.1)",
    )  # fmt: skip
    add(
        "--look-tiles", type=positive, metavar="N",
        help="for glance: this number of tiles at every size, instead of a share",
    )  # fmt: skip
    add("--tile", type=int, default=1024, help="side of slices in pixels (%(default)s)")
    add("--small", action="store_true", help="with a small backbone, few layers and channels")
    add("--device", choices=("cpu",), default="cpu", help="peak memory is that of the process")
    add("overrides", nargs="*", metavar="key=value", help="overrides of all configs")


def run(args: argparse.Namespace) -> Row:
    """Measure size by size.

    Raises:
        ValueError: an input is wrong.
    """
    groups = [list(_cases(args, size)) for size in args.image_size]
    _check(args, [case for group in groups for case in group])
    rows: list[Row] = []
    for group in groups:
        rows += _measure(group, turns_of(args))
        args.record.save({"rows": rows})
        print_table(table({"rows": rows[-len(group) :]}))
    return {"rows": rows}


def _cases(args: argparse.Namespace, size: Size) -> Iterator[LargeCase]:
    changes = (*(SMALL_MODEL if args.small else ()), *args.overrides)
    base = LargeCase("", changes, image_size=size, prepared=True, tile=args.tile)
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
        labels = [f"{args.look_tiles} tiles"]
    for ratio, label in zip(ratios, labels, strict=True):
        changed = (*case.overrides, f"model.regions.look_ratio={ratio}")
        yield replace(case, label=f"glance and look, {label}", overrides=changed)


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
        Slicer(lambda _: [], args.tile, overlap=OVERLAP, whole=False, batch_size=1)


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

    def __init__(self, case: LargeCase, model: Any) -> None:
        self.case, self.model, self.clock = case, model, Clock(torch.device(case.device))
        self._marks = ExitStack()  # as long as this lives
        self._marks.enter_context(stage_marks(model, self.clock))
        self._seen: list[tuple[Row, Size]] = []
        self._run = timed(inference(case, self._make_call()), self.clock, self.first)

    def _make_call(self) -> Callable[[], object]:
        images, sizes = noise(self.case, self.model)
        return lambda: self._detect(images, sizes)

    def _detect(self, images: torch.Tensor, sizes: Sequence[Size]) -> DetectorOutput:
        output = self.model.detect(images, sizes)
        counts = {"passes": 1, **token_counts(output)}
        if output.glance is not None:
            counts["tiles"] = output.glance.tiles.num_valid[0]
            counts["looked_tiles"] = output.glance.looked.counts[0]
        self._seen.append((counts, output.features.image_sizes[0]))
        return output

    def __call__(self) -> Row:
        self._seen.clear()
        parts = self._named(self._run())
        facts = {key: sum(counts[key] for counts, _ in self._seen) for key in self._seen[0][0]}
        return {"parts": parts, "gflops": self._costs(), **facts}

    def _costs(self) -> Parts | None:
        """GFLOPs by stage; None where they depend on the picture."""
        costs = [gflops(replace(self.case, image_size=size)) for _, size in self._seen]
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
        slicer = Slicer(self._find, case.tile, overlap=OVERLAP, whole=False, batch_size=1)
        return lambda: slicer(picture)

    def _find(self, pictures: list[Picture]) -> list[Detections]:
        samples = [{"image": each.pixels} for each in pictures]
        batch = self.model.preprocess(samples)
        self.clock.mark(FIRST_STAGE)
        output = self._detect(batch.images, batch.image_sizes)
        self.clock.mark(MERGE)
        names = tuple(map(str, range(self.model.num_classes)))
        results = self.model.postprocess(output, samples)
        return [
            Detections(
                boxes_xyxy=result["instances"].pred_boxes.tensor.numpy(),
                scores=result["instances"].scores.numpy(),
                labels=result["instances"].pred_classes.numpy(),
                class_names=names,
                image_size=picture.size,
                keep_ratio=result["keep_ratio"],
            )
            for picture, result in zip(pictures, results, strict=True)
        ]


# --- in turns -------------------------------------------------------------------------------------


def _measure(cases: Sequence[LargeCase], turns: dict[str, Any]) -> list[Row]:
    """Rows of the cases, whose passes take turns; one that fails leaves the others."""
    with ExitStack() as stack:
        workers = {case.name: stack.enter_context(closing(Worker(prepare, case))) for case in cases}
        answers, errors = take_turns(workers, **turns)
    return [
        case.facts() | _figures(answers[case.name])
        if case.name in answers
        else case.facts() | {"error": errors[case.name]}
        for case in cases
    ]


def _figures(passes: list[Row]) -> Row:
    """Of the passes of a case: milliseconds by stage, memory, and what all of them computed."""
    timings = {x: asdict(each) for x, each in summarize([y["parts"] for y in passes]).items()}
    facts = {key: x for key, x in passes[-1].items() if key != "parts"}
    return {"ms": timings.pop("total"), "parts": timings, **facts}


# --- table ----------------------------------------------------------------------------------------


def table(result: Row) -> Table:
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

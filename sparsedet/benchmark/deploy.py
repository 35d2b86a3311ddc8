"""Ways to run one detector in deployment, each in a process of its own.

Every form takes turns with the eager model on the same picture, in rounds, after a warm-up; `time /
eager` is the median of the ratios within a round. `start s` is the time from the end of the imports
to the first result: reading or building, and compiling. Differences are the largest ones from the
eager model in fp32. Peak memory is that of the whole process. Files are exported before, and
--files keeps them for the next run. A model is a config, with random weights, or a checkpoint,
whose results are also compared, on a picture of its validation set.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsedet.allocator import TUNED
from sparsedet.analysis import Timing, round_ratio
from sparsedet.benchmark.cases import (
    Case,
    build_model,
    configs_and_changes,
    image_size,
    read_config,
)
from sparsedet.benchmark.execution import turns_of
from sparsedet.benchmark.memory import Worker, take_turns
from sparsedet.benchmark.report import (
    Row,
    Table,
    allocator,
    number,
    print_table,
    reason,
    size_text,
    without_empty,
)
from sparsedet.data import DetectionMapper, PictureSettings
from sparsedet.data.shapes import ShapesOptions, shapes_sample
from sparsedet.data.transforms import FitInside
from sparsedet.export import export
from sparsedet.export.check import compare
from sparsedet.export.formats import PACKAGE, read
from sparsedet.export.graph import DeployedDetector
from sparsedet.loading import trained_config
from sparsedet.modeling.stages import Size
from sparsedet.predictor import Predictor, read_picture
from sparsedet.predictor.exported import filled
from sparsedet.predictor.pictures import make_sample
from sparsedet.predictor.sources import find_files

EAGER = "eager"
GRAY = (127.0, 127.0, 127.0)
CALIBRATION = 8  # pictures on which the ranges for int8 are measured
Answer = list[np.ndarray]


@dataclass(frozen=True)
class Form:
    """One way to run a detector.

    Attributes:
        suffix: of the file that is exported for it; None = the model itself runs.
        options: of ``export``.
        int8: layers of the file are quantized.
        dtype: of the weights, where there is no file.
        compiled: by torch.compile.
        environment: variables of its process.
    """

    suffix: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    int8: bool = False
    dtype: str = "float32"
    compiled: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


FORMS = {
    EAGER: Form(),
    "eager, allocator tuned": Form(environment=TUNED),
    "bfloat16": Form(dtype="bfloat16"),
    "torch.compile": Form(compiled=True),
    ".pt2": Form(".pt2"),
    ".pt2, no custom op": Form(".pt2", {"custom_op": False}),
    "AOTInductor": Form(PACKAGE),
    "ONNX": Form(".onnx"),
    "ONNX, float16": Form(".onnx", {"half": True}),
    "ONNX, int8": Form(".onnx", int8=True),
}


@dataclass(frozen=True)
class Deployed:
    """A model, the size of its pictures, and how it runs; plain values for another process."""

    config: str
    overrides: tuple[str, ...]
    size: Size
    form: str
    path: str | None = None

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"{self.model}, {self.form}"

    @property
    def model(self) -> str:
        """Name of the config, or of the folder of the checkpoint."""
        path = Path(self.config)
        return path.absolute().parent.name if self.trained else path.stem

    @property
    def trained(self) -> bool:
        """Whether weights are those of a checkpoint."""
        return Path(self.config).suffix == ".pth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add = parser.add_argument
    add(
        "--config-file",
        nargs="+",
        default=["photos"],
        metavar="F",
        help="configs or checkpoints (photos)",
    )
    add("--image-size", nargs="+", type=image_size, default=[(640, 640)], metavar="HxW")
    add("--forms", nargs="+", choices=tuple(FORMS), default=list(FORMS), metavar="FORM")
    add("--files", type=Path, metavar="DIR", help="keep exported files here and reuse them")
    add("--device", choices=("cpu",), default="cpu", help="peak memory is that of the process")
    add("overrides", nargs="*", metavar="key=value", help="overrides of all configs")


def run(args: argparse.Namespace) -> Row:
    """Measure model by model and size by size, and write what is there after every form.

    Raises:
        ValueError: an input is wrong.
    """
    configs, changes = configs_and_changes(args)
    for config in configs:
        if Path(config).suffix != ".pth":
            read_config(config, changes)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        for config in configs:
            for size in args.image_size:
                case = Deployed(config, changes, size, EAGER)
                for row in _measure(case, args.forms, folder, turns_of(args)):
                    rows.append(row)
                    args.record.save({"rows": rows})
                print_table(table({"rows": rows}))
    return {"rows": rows}


# --- in a process of its own ----------------------------------------------------------------------


def load_model(case: Deployed) -> nn.Module:
    """The model of a case, prepared for inference."""
    if case.trained:
        return Predictor(case.config, device="cpu").model
    return build_model(Case(case.config, case.overrides, prepared=True, objects=False))


def prepare(case: Deployed) -> Callable[[], Row]:
    """Passes of a form. Each returns its ``ms``, its ``answer``, and ``start_s`` of the process."""
    begin = time.perf_counter()
    (images,) = pictures(case, 1)
    answer = _open(case)
    answer(images)
    facts = {"start_s": time.perf_counter() - begin, "allocator": allocator()}

    def call() -> Row:
        begin = time.perf_counter()
        found = answer(images)
        return {"ms": 1e3 * (time.perf_counter() - begin), "answer": found, **facts}

    return call


def pictures(case: Deployed, count: int) -> list[np.ndarray]:
    """Inputs ``[1 3 h w]``, float32 in 0..255: of the test set of a checkpoint, or drawn."""
    if not case.trained:
        options = ShapesOptions(size=case.size)
        drawn = [shapes_sample(0, "val", index, options).image for index in range(count)]
        return [each.transpose(2, 0, 1)[None].astype(np.float32) for each in drawn]
    folder = trained_config(case.config, "dataset").dataset.val_images
    mapper = DetectionMapper([FitInside(case.size)])
    read = [make_sample(mapper, read_picture(file)) for file in find_files(folder)[:count]]
    return [filled(sample["image"], case.size, GRAY) for sample in read]


def _open(case: Deployed) -> Callable[[np.ndarray], Answer]:
    form = FORMS[case.form]
    if case.path is not None:
        return read(Path(case.path))[1]
    model: Any = load_model(case).to(getattr(torch, form.dtype))
    program: Any = DeployedDetector(model).eval()
    program = torch.compile(program, dynamic=False) if form.compiled else program

    def answer(images: np.ndarray) -> Answer:
        with torch.inference_mode():
            found = program(torch.from_numpy(images))
            return [(x.float() if x.is_floating_point() else x).numpy() for x in found]

    return answer


# --- in turns with the eager model ----------------------------------------------------------------


def _measure(
    eager: Deployed, forms: Sequence[str], folder: Path, turns: dict[str, Any]
) -> Iterator[Row]:
    """Rows of the forms of a model at a size, the eager one first; one that fails has ``error``."""
    with closing(Worker(prepare, eager)) as reference:
        yield _turns(eager, {EAGER: reference}, turns)
        for name in (each for each in forms if each != EAGER):
            case = replace(eager, form=name)
            try:
                case = _with_file(case, folder)
            except Exception as error:
                print(f"failed: {case.name}: {error}", file=sys.stderr)
                yield {**_facts(case), "error": reason(error)}
                continue
            with _environment(FORMS[name].environment):
                worker = Worker(prepare, case)
            with closing(worker):
                yield _turns(case, {name: worker, EAGER: reference}, turns)


def _turns(case: Deployed, workers: Mapping[str, Worker], turns: dict[str, Any]) -> Row:
    answers, errors = take_turns(workers, **turns)
    if errors:
        return {**_facts(case), "error": "; ".join(errors.values())}
    return _row(case, answers[case.form], answers[EAGER])


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes inherit which are started here."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _with_file(case: Deployed, folder: Path) -> Deployed:
    """The case with its file, which is there."""
    form = FORMS[case.form]
    if form.suffix is None:
        return case
    words = ["int8"] if form.int8 else list(form.options)
    stem = "_".join([case.model, size_text(case.size), *words])
    path = folder / f"{stem}{form.suffix}"
    if not path.exists():
        model: Any = load_model(case)
        export(
            model,
            path,
            size=case.size,
            class_names=[str(number) for number in range(model.num_classes)],
            pictures=PictureSettings(),
            quantize=pictures(case, CALIBRATION) if form.int8 else None,
            **form.options,
        )
    return replace(case, path=str(path))


# --- figures --------------------------------------------------------------------------------------


def _row(case: Deployed, passes: Sequence[Row], references: Sequence[Row]) -> Row:
    answers = [passes[-1]["answer"]], [references[-1]["answer"]]
    # of random weights, no answer is the best by more than rounding
    differences = asdict(compare(*answers, [case.size])) if case.trained else None
    path = None if case.path is None else Path(case.path)
    times, others = ([{"total": each["ms"]} for each in x] for x in (passes, references))
    return {
        **_facts(case),
        "ms": asdict(Timing.of([each["ms"] for each in passes])),
        "time_over_eager": round_ratio(times, others),
        "start_s": passes[-1]["start_s"],
        "file_mb": None if path is None else path.stat().st_size / 1e6,
        "memory": passes[-1]["memory"],
        "allocator": passes[-1]["allocator"],
        "differences": differences,
    }


def _facts(case: Deployed) -> Row:
    return {**asdict(case), "name": case.name, "model": case.model}


def table(result: Row) -> Table:
    """Seconds of a picture in every form, and what it costs else."""
    head = ["model", "size", "form", "s per picture", "time / eager", "start s", "file MB"]
    head += ["peak MB", "scores differ by", "boxes by", "tokens by"]
    return without_empty([head, *map(_line, result["rows"])])


def _line(row: Row) -> list[str]:
    place = [row["model"], size_text(row["size"]), row["form"]]
    if "error" in row:
        return [*place, "failed", *[""] * 7]
    return [
        *place,
        number(row["ms"]["median"] / 1e3, 3),
        number(row["time_over_eager"]),
        number(row["start_s"], 1),
        number(row["file_mb"], 1),
        number(row["memory"]["peak_mb"], 0),
        *_differences(row["differences"]),
    ]


def _differences(far: Row | None) -> list[str]:
    if far is None:
        return [""] * 3
    tokens = far["tokens"]
    shares = [f"{100 * far['boxes']:.2g} %", "" if tokens is None else f"{100 * tokens:.2g} %"]
    return [f"{far['scores']:.0e}", *shares]

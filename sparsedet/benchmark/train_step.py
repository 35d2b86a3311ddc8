"""One training step: forward, criterion, backward and optimizer, with its peak memory.

Images are noise with seven random objects each. From the config, the step takes the model, the
optimizer and the gradient clipping.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from sparsedet.analysis import Clock, Parts, timed
from sparsedet.analysis.passes import Detector
from sparsedet.benchmark.cases import SEED, Case, build_model, noise, product, read_config
from sparsedet.benchmark.cases import add_arguments as add_case_arguments
from sparsedet.benchmark.execution import Rounds, precision, run_cases
from sparsedet.benchmark.memory import device_peak, process_peak
from sparsedet.benchmark.model import FOCUS
from sparsedet.benchmark.report import (
    CASE_HEAD,
    Row,
    Table,
    case_cells,
    number,
    peak_cell,
    without_empty,
)
from sparsedet.config import ConfigError, instantiate
from sparsedet.modeling import TokenSparseDetector
from sparsedet.modeling.stages import Targets

PARTS = ("forward", "criterion", "backward", "optimizer")
OBJECTS = 7  # of an image, as on COCO
CLIP_NORM = 0.1  # where a config does not say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this mode."""
    add_case_arguments(parser, config=(FOCUS,), image_sizes=((640, 640),))
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.set_defaults(keep_ratio=["dense", "0.3"], batch=[2])


def run(args: argparse.Namespace) -> Row:
    """Time the steps, those of one size and batch in turns.

    Raises:
        ValueError: an input is wrong.
    """
    steps: dict[Case, Step] = {}

    def make(case: Case, stack: ExitStack) -> Callable[[], Parts]:
        stack.callback(steps.clear)
        steps[case] = Step(case)
        return timed(steps[case], steps[case].clock, PARTS[0])

    def facts(case: Case, _: Rounds) -> Row:
        return {} if args.no_memory else {"memory": _peak_memory(case, steps[case])}

    return run_cases(args, product(args, training=True), make, facts, table)


class Step:
    """A model in training with its optimizer and a batch.

    Args:
        case: says which, and how it runs.

    Raises:
        ConfigError: the config has no optimizer.
    """

    def __init__(self, case: Case) -> None:
        cfg = read_config(case.config, case.overrides)
        if "optimizer" not in cfg:
            raise ConfigError(f"{case.config} has no optimizer. Use the config of a training run.")
        self.case = case
        self.model = build_model(case).train()
        cfg.optimizer.params.model = self.model
        self.optimizer: torch.optim.Optimizer = instantiate(cfg.optimizer)
        clip = cfg.get("train", {}).get("clip_grad")
        self.clip_norm = clip.params.max_norm if clip else CLIP_NORM
        self.images, self.sizes = noise(case, self.model)
        self.targets = random_targets(case, self.model)
        self.clock = Clock(torch.device(case.device))

    def __call__(self) -> None:
        """One step."""
        with precision(self.case):
            losses = self._losses()
            loss = torch.stack([each.float() for each in losses.values()]).sum()
        self.clock.mark("backward")
        loss.backward()
        self.clock.mark("optimizer")
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self) -> dict[str, Tensor]:
        model = self.model
        if not isinstance(model, TokenSparseDetector):  # torchvision's have no criterion of ours
            return model.detect(self.images, self.sizes, self.targets)
        criterion = model.criterion
        output = model.detect(self.images, self.sizes, self.targets, record=criterion.requires)
        self.clock.mark("criterion")
        return criterion(output, self.targets)

    def owned(self) -> list[Tensor]:
        """What is there before a step: weights, the optimizer's state, the batch."""
        state = [
            value
            for slot in self.optimizer.state.values()
            for value in slot.values()
            if isinstance(value, Tensor)
        ]
        return [*self.model.state_dict().values(), *state, self.images]


def random_targets(case: Case, model: Detector) -> Targets:
    """Objects of many sizes, the same ones for the same batch."""
    generator = torch.Generator().manual_seed(SEED)
    boxes, labels = [], []
    for _ in range(case.batch):
        centers = 0.2 + 0.6 * torch.rand(OBJECTS, 2, generator=generator)
        sides = 0.03 + 0.35 * torch.rand(OBJECTS, 2, generator=generator)
        boxes.append(torch.cat((centers, sides), -1).to(case.device))
        classes = torch.randint(model.num_classes, (OBJECTS,), generator=generator)
        labels.append(classes.to(case.device))
    return Targets(tuple(boxes), tuple(labels))


def _peak_memory(case: Case, step: Step) -> dict[str, float]:
    if torch.device(case.device).type == "cpu":
        return process_peak(Step, case)
    return device_peak(step, step.owned(), torch.device(case.device))


def table(result: Row) -> Table:
    """A line for each case; milliseconds are those of an image, as everywhere."""
    head = ["training step of", *CASE_HEAD, "speedup", "over grid_sample"]
    head += [*(f"{part} ms per step" for part in PARTS), "peak MB"]
    rows = []
    for row in result["rows"]:
        parts = [row.get("parts", {}).get(part) for part in PARTS]
        rows.append(
            [
                *case_cells(row),
                number(row.get("speedup")),
                number(row.get("speedup_over_grid_sample")),
                *("" if part is None else number(part["median"], 1) for part in parts),
                peak_cell(row),
            ]
        )
    return without_empty([head, *rows])

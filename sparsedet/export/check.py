"""Check in a new process that an exported file computes the same outputs as the model."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsedet.export.contract import OUTPUTS, ExportError
from sparsedet.export.formats import Kind
from sparsedet.files import atomic_write
from sparsedet.modeling.stages import Size

BOX_LIMIT, SCORE_LIMIT = 1e-3, 1e-4
_FACTOR = 4.0  # a program rounds in more places than its input
# The code of the new process: it imports only the operator of sparsedet, if the file uses it;
# otherwise sparsedet cannot be imported there.
_WITH, _WITHOUT = "import sparsedet.layers\n", "import sys\nsys.modules['sparsedet'] = None\n"
_ONNX = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
run = lambda x: session.run(None, {session.get_inputs()[0].name: x})
"""
_PROGRAM = """
import sys, numpy, torch
module = torch.export.load(sys.argv[1]).module()
run = lambda x: [y.numpy() for y in module(torch.from_numpy(x))]
"""
_PACKAGE = """
import sys, numpy, torch
module = torch._inductor.aoti_load_package(sys.argv[1])
run = lambda x: [y.numpy() for y in module(torch.from_numpy(x))]
"""
_CODE = {"onnx": _ONNX, "program": _PROGRAM, "package": _PACKAGE}
_MAIN = """
inputs = numpy.load(sys.argv[2])
given = [inputs[f"arr_{i}"] for i in range(len(inputs.files))]
found = {f"{i}_{j}": y for i, x in enumerate(given) for j, y in enumerate(run(x))}
numpy.savez(sys.argv[3], **found)
"""


@dataclass(frozen=True)
class Differences:
    """The largest differences between the outputs of a file and of the model.

    Attributes:
        scores: difference of scores, in [0, 1].
        boxes: difference of box sides, as a share of the picture.
        labels: share of the detections with another label.
        tokens: share of the kept tokens that differ; None if all tokens are kept.
        detections: number of detections that were compared.
    """

    scores: float
    boxes: float
    labels: float
    tokens: float | None
    detections: int

    @property
    def small(self) -> bool:
        """Whether the differences are within the limits of rounding."""
        same = self.labels == 0 and self.tokens in (0, None)
        return same and self.scores <= SCORE_LIMIT and self.boxes <= BOX_LIMIT

    def within(self, rounding: Differences) -> bool:
        """Whether the differences are small, or similar to the effect of rounding in the model.

        Args:
            rounding: differences of the model's outputs if pixels change by float32 rounding.
        """
        return self.small or (
            self.labels <= rounding.labels
            and (self.tokens or 0) <= (rounding.tokens or 0)
            and self.scores <= max(SCORE_LIMIT, _FACTOR * rounding.scores)
            and self.boxes <= max(BOX_LIMIT, _FACTOR * rounding.boxes)
        )

    def __str__(self) -> str:
        tokens = "" if self.tokens is None else f", kept tokens {100 * self.tokens:.2g} % different"
        labels = f", labels {100 * self.labels:.2g} % different" if self.labels else ""
        if not self.detections:
            return f"none of them to compare{tokens}"
        return f"scores {self.scores:.1e}, boxes {self.boxes:.1e} of the sides{labels}{tokens}"


def run_afresh(
    path: Path, inputs: Sequence[np.ndarray], *, kind: Kind, custom_op: bool, mend: str = ""
) -> list[list[np.ndarray]]:
    """Run a file in a new process and return its outputs.

    Args:
        path: the file.
        inputs: each ``[b 3 H W]``, float32 in 0..255.
        kind: format of the file.
        custom_op: the file needs our operator; otherwise sparsedet cannot be imported there.
        mend: advice if the file does not run, for the message.

    Raises:
        ExportError: the process failed; the message has its last line.
    """
    code = (_WITH if custom_op else _WITHOUT) + _CODE[kind] + _MAIN
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder, "given.npz"), Path(folder, "got.npz")
        with atomic_write(given) as file:
            np.savez(file, *inputs)
        command = [sys.executable, "-c", code, str(path), str(given), str(got)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(
                f"{path.name} does not run in a new process, and was not written ({reason}). {mend}"
            )
        with np.load(got) as read:
            found = dict(read)
    return [
        [found[f"{i}_{j}"] for j in range(len(OUTPUTS)) if f"{i}_{j}" in found]
        for i in range(len(inputs))
    ]


def compare(
    got: Sequence[Sequence[np.ndarray]],
    expected: Sequence[Sequence[np.ndarray]],
    sizes: Sequence[Size],
    least_score: float = -1.0,
) -> Differences:
    """The largest differences of the outputs for several inputs.

    Detections with equal scores may be in another order, so each is compared with the nearest one
    of the same label.

    Args:
        got: the outputs of the file for each input, ``[b ...]`` each.
        expected: the outputs of the model.
        sizes: (H, W) of each input.
        least_score: only detections are compared that reach this score in either output.
    """
    pairs = [
        _compare([each[row] for each in a], [each[row] for each in b], size, least_score)
        for a, b, size in zip(got, expected, sizes, strict=True)
        for row in range(len(b[0]))
    ]
    tokens = [each.tokens for each in pairs if each.tokens is not None]
    return Differences(
        scores=max(each.scores for each in pairs),
        boxes=max(each.boxes for each in pairs),
        labels=max(each.labels for each in pairs),
        tokens=max(tokens) if tokens else None,
        detections=sum(each.detections for each in pairs),
    )


def _compare(
    got: Sequence[np.ndarray], expected: Sequence[np.ndarray], size: Size, least_score: float
) -> Differences:
    count = max(int((each[0] >= least_score).sum()) for each in (got, expected))
    scores, labels, boxes = (each[:count] for each in got[:3])
    own, own_labels, own_boxes = expected[:3]
    sides = np.asarray([size[1], size[0]] * 2, dtype=np.float64)
    far = np.abs((boxes[:, None] - own_boxes[None]) / sides).max(-1)
    far = np.maximum(far, np.abs(scores[:, None] - own[None]))
    far[labels[:, None] != own_labels[None]] = np.inf
    nearest = far.argmin(1)
    found = np.isfinite(far.min(1))
    tokens = None
    if len(got) > 3:
        kept, own_kept = (set(each[3].tolist()) - {-1} for each in (got, expected))
        tokens = max(len(kept - own_kept), len(own_kept - kept)) / max(1, len(own_kept))
    return Differences(
        scores=float(np.abs(scores - own[:count]).max(initial=0.0)),
        boxes=float(np.abs((boxes - own_boxes[nearest]) / sides)[found].max(initial=0.0)),
        labels=float(1 - found.mean()) if len(found) else 0.0,
        tokens=tokens,
        detections=count,
    )

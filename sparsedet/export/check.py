"""Does a saved file compute what the model computes? It is opened in a fresh process to tell."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsedet.export.contract import OUTPUTS, ExportError

BOX_LIMIT, SCORE_LIMIT = 1e-3, 1e-4
# What a fresh process runs: of sparsedet, it imports the operator alone, and that where it is used.
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
_MAIN = """
pictures = numpy.load(sys.argv[2])
found = {f"{i}_{j}": y for i, x in enumerate(pictures) for j, y in enumerate(run(x[None]))}
numpy.savez(sys.argv[3], **found)
"""


@dataclass(frozen=True)
class Differences:
    """How far the answers of a file are from those of the model, at most.

    Attributes:
        scores: of the detections, in [0, 1].
        boxes: of the sides, as shares of the picture.
        labels: share of the detections that have another one.
        tokens: share of the kept tokens that are others; None where all are kept.
    """

    scores: float
    boxes: float
    labels: float
    tokens: float | None

    @property
    def small(self) -> bool:
        """Whether they are those of rounding."""
        same = self.labels == 0 and self.tokens in (0, None)
        return same and self.scores <= SCORE_LIMIT and self.boxes <= BOX_LIMIT

    def __str__(self) -> str:
        tokens = "" if self.tokens is None else f", kept tokens {100 * self.tokens:.2g} % others"
        labels = f", labels {100 * self.labels:.2g} % others" if self.labels else ""
        return f"scores {self.scores:.1e}, boxes {self.boxes:.1e} of the sides{labels}{tokens}"


def run_afresh(path: Path, pictures: np.ndarray, *, custom_op: bool) -> list[list[np.ndarray]]:
    """Answers of a file in a process of its own.

    Args:
        path: of the file.
        pictures: ``[n 3 H W]``, float32 in 0..255.
        custom_op: the file needs our operator.

    Raises:
        ExportError: the process failed; its last line is told.
    """
    head = "import sparsedet.layers\n" if custom_op else ""
    code = head + (_ONNX if path.suffix == ".onnx" else _PROGRAM) + _MAIN
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder, "given.npy"), Path(folder, "got.npz")
        np.save(given, pictures)
        command = [sys.executable, "-c", code, str(path), str(given), str(got)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"{path} was written, and does not run in a new process: {reason}")
        with np.load(got) as read:
            found = dict(read)
    return [
        [found[f"{i}_{j}"] for j in range(len(OUTPUTS)) if f"{i}_{j}" in found]
        for i in range(len(pictures))
    ]


def compare(
    got: Sequence[Sequence[np.ndarray]],
    expected: Sequence[Sequence[np.ndarray]],
    size: tuple[int, int],
) -> Differences:
    """The largest differences of the answers to several pictures.

    Detections of equal scores may come in another order: each is compared with the one of its
    label that is nearest.
    """
    pairs = [_compare(a, b, size) for a, b in zip(got, expected, strict=True)]
    tokens = [each.tokens for each in pairs if each.tokens is not None]
    return Differences(
        scores=max(each.scores for each in pairs),
        boxes=max(each.boxes for each in pairs),
        labels=max(each.labels for each in pairs),
        tokens=max(tokens) if tokens else None,
    )


def _compare(
    got: Sequence[np.ndarray], expected: Sequence[np.ndarray], size: tuple[int, int]
) -> Differences:
    (scores, labels, boxes), (own, own_labels, own_boxes) = (
        (each[0][0], each[1][0], each[2][0]) for each in (got, expected)
    )
    sides = np.asarray([size[1], size[0]] * 2, dtype=np.float64)
    far = np.abs((boxes[:, None] - own_boxes[None]) / sides).max(-1)
    far = np.maximum(far, np.abs(scores[:, None] - own[None]))
    far[labels[:, None] != own_labels[None]] = np.inf
    nearest = far.argmin(1)
    found = np.isfinite(far.min(1))
    tokens = None
    if len(got) > 3:
        kept, own_kept = (set(each[3][0].tolist()) - {-1} for each in (got, expected))
        tokens = max(len(kept - own_kept), len(own_kept - kept)) / max(1, len(own_kept))
    return Differences(
        scores=float(np.abs(scores - own).max(initial=0.0)),
        boxes=float(np.abs((boxes - own_boxes[nearest]) / sides)[found].max(initial=0.0)),
        labels=float(1 - found.mean()) if len(found) else 0.0,
        tokens=tokens,
    )

"""The kinds of files that an exported detector can be, how each is written, and how it is run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from sparsedet.export.contract import KEY, OUTPUTS, Contract, ExportError
from sparsedet.export.quantize import quantize
from sparsedet.files import atomic_write

OPSET = 18
SUFFIXES = (".pt2", ".onnx")
Run = Callable[[np.ndarray], list[np.ndarray]]
"""Pictures ``[1 3 H W]`` in, the outputs of the program out."""


def require_suffix(path: Path) -> None:
    """Refuse names of files that say no format.

    Raises:
        ExportError: names the formats.
    """
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path} must end in {' or '.join(SUFFIXES)}, which says the format.")


def require_onnx() -> None:
    """Check that what writes and runs ONNX files is installed.

    Raises:
        ImportError: says what to install.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ONNX files need onnx, onnxscript and onnxruntime: pip install 'sparsedet[onnx]'."
        ) from error


def write(
    program: ExportedProgram,
    path: Path,
    contract: Contract,
    calibration: Sequence[np.ndarray] | None = None,
) -> None:
    """Write a program with its contract; the file is the whole new one or not there.

    Args:
        program: of one picture, without our operator where the file is an ONNX one.
        path: its suffix says the format.
        contract: goes into the file.
        calibration: pictures, where an ONNX file is to be in int8.
    """
    if path.suffix == ".pt2":
        with atomic_write(path) as file:
            torch.export.save(program, file, extra_files={KEY: contract.to_json()})
        return
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(OUTPUTS[: len(program.graph_signature.user_outputs)]),
            verbose=False,
        )
        assert made is not None
        proto = made.model_proto
        if calibration is not None:
            proto = quantize(proto, calibration)
    proto.metadata_props.add(key=KEY, value=contract.to_json())
    for node in proto.graph.node:  # the lines of code that each came from, larger than the weights
        del node.metadata_props[:]
    with atomic_write(path) as file:
        file.write(proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells of its own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def read(path: Path, threads: int | None = None) -> tuple[Contract, Run]:
    """Open an exported file.

    Args:
        path: a file of :func:`write`.
        threads: of the runtime of ONNX; None = what it takes itself.

    Raises:
        ExportError: the file cannot be read, or is no exported detector.
        ImportError: the runtime of its format is not installed.
    """
    require_suffix(path)
    if not path.is_file():
        raise ExportError(f"{path} is not a file. Give one that `sparsedet export` wrote.")
    return _read_onnx(path, threads) if path.suffix == ".onnx" else _read_program(path)


def _read_onnx(path: Path, threads: int | None) -> tuple[Contract, Run]:
    require_onnx()
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    providers = onnxruntime.get_available_providers()
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors have no common class
        raise _unreadable(path, error) from error
    facts = session.get_modelmeta().custom_metadata_map.get(KEY)
    contract = Contract.from_json(facts, str(path))
    name = session.get_inputs()[0].name
    return contract, lambda images: session.run(None, {name: images})


def _read_program(path: Path) -> tuple[Contract, Run]:
    import sparsedet.layers  # noqa: F401  # knows our operator

    extra = {KEY: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # a broken archive has no common class of errors
        raise _unreadable(path, error) from error
    contract = Contract.from_json(extra[KEY], str(path))
    module = program.module()

    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [each.numpy() for each in module(torch.from_numpy(images))]

    return contract, run


def _unreadable(path: Path, error: Exception) -> ExportError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ExportError(
        f"{path} cannot be read ({reason}). It is damaged, or not a file of `sparsedet export`."
    )

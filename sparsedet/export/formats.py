"""The file formats of exported detectors: how each is written and run."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from sparsedet.export.contract import KEY, OUTPUTS, Contract, ExportError
from sparsedet.export.quantize import quantize
from sparsedet.files import atomic_write, is_exported

OPSET = 18
PACKAGE = ".aoti.pt2"
"""Suffix of a package that AOTInductor compiles."""
Kind = Literal["onnx", "program", "package"]
Run = Callable[[np.ndarray], list[np.ndarray]]
"""Takes pictures ``[B 3 H W]`` and returns the outputs of the program."""


def kind_of(path: Path) -> Kind:
    """The format of an exported file, from its name.

    Raises:
        ExportError: the name has none of the known suffixes.
    """
    if not is_exported(path):
        raise ExportError(
            f"{path} must end in .onnx, .pt2 or {PACKAGE}, which determines the file format."
        )
    name = path.name.lower()
    if name.endswith(".onnx"):
        return "onnx"
    return "package" if name.endswith(PACKAGE) else "program"


def require_writer(kind: Kind) -> None:
    """Check that everything that is needed to write a format is installed.

    Raises:
        ExportError: there is no compiler.
        ImportError: a package is missing; the message says what to install.
    """
    if kind == "onnx":
        require_onnx()
    if kind == "package":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            raise ExportError(
                f"An {PACKAGE} file needs a C++ compiler, and none was found. Install g++, or "
                "choose a .pt2 file, which needs none."
            ) from error


def require_onnx() -> None:
    """Check that the packages that write and run ONNX files are installed.

    Raises:
        ImportError: a package is missing; the message says what to install.
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
    """Write a program with its contract.

    Args:
        program: program of a detector; for ONNX without our operator.
        path: the file, whose suffix determines the format.
        contract: stored in the file.
        calibration: pictures to calibrate an ONNX file in int8 on; None = no quantization.

    Raises:
        ExportError: the format does not support a step of the program.
        OSError: the file cannot be written.
    """
    kind = kind_of(path)
    if kind == "onnx":
        _write_onnx(program, path, contract, calibration)
    elif kind == "program":
        content = io.BytesIO()  # on a full disk, torch's own writer ends the process
        torch.export.save(program, content, extra_files={KEY: contract.to_json()})
        _write_bytes(path, content.getbuffer())
    else:
        _write_package(program, path, contract)


def _write_package(program: ExportedProgram, path: Path, contract: Contract) -> None:
    content, facts = io.BytesIO(), {"aot_inductor.metadata": {KEY: contract.to_json()}}
    try:
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                program, package_path=content, inductor_configs=facts
            )
    except Exception as error:  # inductor and the compiler may raise any class of error
        raise ExportError(
            f"{path.name} was not written: AOTInductor failed ({_cause(error)}). Export a .pt2 "
            "file instead."
        ) from error
    _write_bytes(path, content.getbuffer())


def _write_onnx(
    program: ExportedProgram,
    path: Path,
    contract: Contract,
    calibration: Sequence[np.ndarray] | None,
) -> None:
    with _quiet():
        proto = _to_onnx(program, path)
        if calibration is not None:
            proto = quantize(proto, calibration)
    proto.metadata_props.add(key=KEY, value=contract.to_json())
    for node in proto.graph.node:  # the source lines of nodes are larger than the weights
        del node.metadata_props[:]
    _write_bytes(path, proto.SerializeToString())


def _write_bytes(path: Path, content: bytes | memoryview) -> None:
    with atomic_write(path) as file:
        file.write(content)


def _to_onnx(program: ExportedProgram, path: Path) -> Any:
    try:
        made: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(OUTPUTS[: len(program.graph_signature.user_outputs)]),
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
        )
        return made.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(
            f"{path.name} was not written: the ONNX exporter failed ({_cause(error)}). "
            "Export a .pt2 file instead, or replace the part that causes this."
        ) from error


def _stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """``aten.sort.stable``: ONNX's TopK also keeps the order of equal values."""
    import onnxscript

    onnx: Any = onnxscript.opset18
    length = onnx.Gather(onnx.Shape(x), onnx.Constant(value_ints=[dim]))
    return onnx.TopK(x, length, axis=dim, largest=int(descending), sorted=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log messages of the exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def read(path: Path) -> tuple[Contract, Run]:
    """Open an exported file.

    Args:
        path: a file of :func:`write`. ONNX uses as many threads as torch.

    Raises:
        ExportError: the file cannot be read, or is not an exported detector.
        ImportError: the runtime of its format is not installed.
    """
    kind = kind_of(path)
    if not path.is_file():
        raise ExportError(f"{path} is not a file. Give one that `sparsedet export` wrote.")
    if kind == "onnx":
        return _read_onnx(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any("/data/aotinductor/" in name for name in names):
                return _read_package(path)
            facts = next((name for name in names if name.endswith(f"/extra/{KEY}")), None)
            # before the program, which a newer torch may have written
            contract = Contract.from_json(facts and archive.read(facts), str(path))
        return contract, _read_program(path)
    except ExportError:
        raise
    except Exception as error:  # a broken archive has no common class of errors
        raise _unreadable(path, error) from error


def _read_onnx(path: Path) -> tuple[Contract, Run]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX files run by onnxruntime: pip install onnxruntime.") from error
    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()  # not set by its environment variable
    cpu = ["CPUExecutionProvider"]
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=cpu)
    except Exception as error:  # its errors have no common class
        raise _unreadable(path, error) from error
    facts = session.get_modelmeta().custom_metadata_map.get(KEY)
    contract = Contract.from_json(facts, str(path))
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
    pictures = contract.size is not None and len(shape) == 4
    if pictures and tuple(shape[2:]) != contract.size:
        raise _unreadable(path, ValueError(f"its input is {shape}, its contract {contract.size}"))
    return contract, lambda images: session.run(None, {name: images})


def _read_program(path: Path) -> Run:
    import sparsedet.layers  # noqa: F401  # knows our operator

    return _on_arrays(torch.export.load(path).module())


def _read_package(path: Path) -> tuple[Contract, Run]:
    import sparsedet.layers  # noqa: F401  # knows our operator

    package = torch._inductor.aoti_load_package(str(path))
    contract = Contract.from_json(package.get_metadata().get(KEY), str(path))
    return contract, _on_arrays(package)


def _on_arrays(module: Callable[[Tensor], Sequence[Tensor]]) -> Run:
    def run(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [each.numpy() for each in module(torch.from_numpy(images))]

    return run


def _unreadable(path: Path, error: Exception) -> ExportError:
    return ExportError(
        f"{path} cannot be read ({_first_line(error)}). It is damaged, or `sparsedet export` did "
        "not write it."
    )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""The kinds of files that an exported detector can be, how each is written, and how it is run."""

from __future__ import annotations

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
from sparsedet.files import is_exported

OPSET = 18
PACKAGE = ".aoti.pt2"
"""How the name of a package ends that AOTInductor compiles."""
Kind = Literal["onnx", "program", "package"]
Run = Callable[[np.ndarray], list[np.ndarray]]
"""Pictures ``[B 3 H W]`` in, the outputs of the program out."""


def kind_of(path: Path) -> Kind:
    """What an exported file is to be, by its name.

    Raises:
        ExportError: it says no format; the formats are named.
    """
    if not is_exported(path):
        raise ExportError(
            f"{path} must end in .onnx, .pt2 or {PACKAGE}, which says the format of the file."
        )
    name = path.name.lower()
    if name.endswith(".onnx"):
        return "onnx"
    return "package" if name.endswith(PACKAGE) else "program"


def require_writer(kind: Kind) -> None:
    """Check that what writes a kind of file is installed.

    Raises:
        ExportError: there is no compiler.
        ImportError: a package is missing; it says what to install.
    """
    if kind == "onnx":
        require_onnx()
    if kind == "package":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            raise ExportError(
                f"A {PACKAGE} file is compiled when it is written, and no C++ compiler is found. "
                "Install g++, or name a .pt2 file, which needs none."
            ) from error


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
    """Write a program with its contract.

    Args:
        program: of a detector, without our operator where the file is an ONNX one.
        path: its name says the format.
        contract: goes into the file.
        calibration: pictures, where an ONNX file is to be in int8.

    Raises:
        ExportError: the program has a step that the format does not have.
    """
    kind = kind_of(path)
    if kind == "onnx":
        _write_onnx(program, path, contract, calibration)
    elif kind == "program":
        torch.export.save(program, path, extra_files={KEY: contract.to_json()})
    else:
        _write_package(program, path, contract)


def _write_package(program: ExportedProgram, path: Path, contract: Contract) -> None:
    facts = {"aot_inductor.metadata": {KEY: contract.to_json()}}
    try:
        with _quiet():
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=facts
            )
    except Exception as error:  # of inductor or of the compiler, of any class
        raise ExportError(
            f"{path.name} is not written: AOTInductor fails ({_cause(error)}). Write a .pt2 file "
            "instead."
        ) from error


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
    for node in proto.graph.node:  # the lines of code that each came from, larger than the weights
        del node.metadata_props[:]
    path.write_bytes(proto.SerializeToString())


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
            f"{path.name} is not written: the exporter to ONNX fails ({_cause(error)}). "
            "Write a .pt2 file instead, or set another part in the place of what does this."
        ) from error


def _stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """``aten.sort.stable``: of equal values, TopK of ONNX gives the first one first, too."""
    import onnxscript

    onnx: Any = onnxscript.opset18
    length = onnx.Gather(onnx.Shape(x), onnx.Constant(value_ints=[dim]))
    return onnx.TopK(x, length, axis=dim, largest=int(descending), sorted=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells of its own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def read(path: Path) -> tuple[Contract, Run]:
    """Open an exported file.

    Args:
        path: a file of :func:`write`. ONNX runs on as many threads as torch.

    Raises:
        ExportError: the file cannot be read, or is no exported detector.
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
            # before the program, which a newer torch may have written, too
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
    options.intra_op_num_threads = torch.get_num_threads()  # which its own variable does not set
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
        raise _unreadable(path, ValueError(f"its input is {shape}, its facts say {contract.size}"))
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
        f"{path} cannot be read ({_first_line(error)}). It is damaged, or not a file of `sparsedet "
        "export`."
    )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

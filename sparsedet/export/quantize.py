"""Quantize linear layers and convolutions of an ONNX file to int8 with onnxruntime.

Weights are quantized per output channel. The ranges of activations are measured on calibration
pictures (Jacob et al., CVPR 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"). Everything else stays in float32: attention, sampling, norms.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsedet.export.contract import ExportError

_SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter stores the origin of a node
_LAYERS = ("Conv", "MatMul", "Gemm")
_ACTIVATIONS = ("Relu", "Clip")
_CONSTANT = ("Split", "Slice", "Transpose")


def require_int8(path: Path, pictures: Sequence[np.ndarray] | None, *, half: bool) -> None:
    """Check the arguments of a quantized export.

    Args:
        path: the file to write.
        pictures: calibration pictures; None = no quantization.
        half: whether float16 is requested.

    Raises:
        ExportError: the file is not an ONNX file, float16 is requested, or there is no picture.
    """
    if pictures is None:
        return
    if path.suffix.lower() != ".onnx":
        raise ExportError(f"int8 needs an .onnx file, got {path}. Choose that suffix.")
    if half:
        raise ExportError("--half and --int8 exclude each other. Leave one of them out.")
    if not len(pictures):
        raise ExportError("int8 needs pictures to calibrate on, but there is none.")


def quantize(model: Any, pictures: Iterable[np.ndarray]) -> Any:
    """Quantize the linear layers and convolutions of a program to int8.

    Args:
        model: ``onnx.ModelProto`` of the exporter, with its metadata, in float32; changed in place.
        pictures: ``[1 3 H W]``, float32 in 0..255, to calibrate on.

    Returns:
        A new ``onnx.ModelProto`` with only standard operators.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    _fold_weights(model)
    layers = _layers(model)
    nodes = [*layers, *_activations(model, layers)]
    add_pre_process_metadata(model)  # the exporter has folded constants and inferred shapes
    reader: Any = _Reader(model.graph.input[0].name, pictures)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_static(
            model,
            path,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, *_ACTIVATIONS],
            nodes_to_quantize=[node.name for node in nodes],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
        made = onnx.load(path)
    _leave_others(made)
    del made.metadata_props[:]
    return made


def _layers(model: Any) -> list[Any]:
    """The nodes that apply weights; other products with constants are e.g. interpolations."""
    weights = {each.name for each in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in _LAYERS
        and node.input[1] in weights
        and (node.op_type != "MatMul" or _origin(node).startswith("linear"))
    ]


def _origin(node: Any) -> str:
    """The operation of torch that a node carries out, such as "linear_3"."""
    notes = {each.key: each.value for each in node.metadata_props}
    return ast.literal_eval(notes.get(_SCOPES, "['']"))[-1]


def _activations(model: Any, layers: Sequence[Any]) -> list[Any]:
    """The nodes that clip the output of a convolution; quantization of the output does the same."""
    convolved = {node.output[0] for node in layers if node.op_type == "Conv"}
    return [
        node
        for node in model.graph.node
        if node.op_type in _ACTIVATIONS and node.input[0] in convolved
    ]


def _leave_others(model: Any) -> None:
    """Let sums and norms read unquantized values, except the outputs of convolutions.

    onnxruntime quantizes a value for all nodes that read it. The outputs of convolutions stay
    quantized, since convolutions are faster that way.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    before = {}
    for node in model.graph.node:
        rounded = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounded is not None:
            maker = makers.get(rounded.input[0])
            if maker is None or maker.op_type != "Conv":
                before[node.output[0]] = rounded.input[0]
    for node in model.graph.node:
        if node.op_type not in _LAYERS:
            for index, name in enumerate(node.input):
                node.input[index] = before.get(name, name)


def _fold_weights(model: Any) -> None:
    """Fold nodes that split, slice or transpose weights, so that each product has its own."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known = {each.name: each for each in graph.initializer}
    for node in list(graph.node):
        inputs = [name for name in node.input if name]
        if node.op_type not in _CONSTANT or not all(name in known for name in inputs):
            continue
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        own = helper.make_graph([node], "fold", [], outputs, [known[name] for name in inputs])
        single = helper.make_model(own, opset_imports=model.opset_import)
        values = ReferenceEvaluator(single).run(None, {})
        for name, value in zip(node.output, values, strict=True):
            known[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in known.items() if name in used)


class _Reader:
    """Calibration pictures in onnxruntime's interface."""

    def __init__(self, name: str, pictures: Iterable[np.ndarray]) -> None:
        self._inputs: Iterator[dict[str, np.ndarray]] = ({name: each} for each in pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)

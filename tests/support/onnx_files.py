"""ONNX files written node by node, and what ONNX Runtime and this package make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ternary_ops.interchange import load_onnx

IMAGE = ("N", 3, "H", "W")


class Builder:
    """An ONNX file, node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, **at: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **at))
        return output

    def save(
        self,
        path: Path,
        last: str,
        opset: int = 14,
        image: Sequence[Any] = IMAGE,
        kind: int = TensorProto.FLOAT,
    ) -> Path:
        info = helper.make_tensor_value_info
        made = onnx.ValueInfoProto(name=last)
        graph = helper.make_graph(
            self.nodes, "g", [info("image", kind, image)], [made], self.constants
        )
        opsets = [helper.make_opsetid("", opset)]
        version = 8 if opset < 19 else 10
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        # The checker wants a shape for the result, ONNX Runtime the right one.
        (told,) = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
        if not told.type.tensor_type.HasField("shape"):
            told = info(last, kind, ["N", "K"])
        model.graph.output[0].CopyFrom(told)
        path.unlink(missing_ok=True)  # writing over a file waits for the disk
        onnx.save(model, str(path))
        return path

    def weight(self, name: str, values: NDArray[Any], axis: int | None = 0) -> str:
        """Float weights as int8 with one scale for all (axis None) or one for each of an axis."""
        others = None if axis is None else tuple(a for a in range(values.ndim) if a != axis)
        scale = np.abs(values).max(others, keepdims=axis is not None) / 127
        codes = self.constant(f"{name}.codes", np.rint(values / scale), np.int8)
        steps = self.constant(f"{name}.scale", scale.ravel() if axis is not None else scale)
        more = {} if axis is None else {"axis": axis}
        return self.add("DequantizeLinear", [codes, steps], name, **more)

    def pair(self, x: str, lo: float, hi: float, dtype: Any = np.uint8) -> str:
        """QuantizeLinear and DequantizeLinear for a range."""
        scale = (hi - lo) / 255
        zero = int(np.rint(-lo / scale)) + int(np.iinfo(dtype).min)
        name = f"{x}_{len(self.nodes)}"
        numbers = [
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero", zero, dtype),
        ]
        codes = self.add("QuantizeLinear", [x, *numbers], f"{name}_codes")
        return self.add("DequantizeLinear", [codes, *numbers], f"{name}_real")


def random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def run(path: Path, x: NDArray[Any], plain: bool = False) -> NDArray[np.float32]:
    """ONNX Runtime's result; plain: without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(y)


def ours(path: Path, x: NDArray[Any]) -> NDArray[np.float32]:
    """The result of the module that the package reads."""
    with torch.no_grad():
        made: NDArray[np.float32] = load_onnx(path)(torch.from_numpy(x)).numpy()
    return made


def agree(path: Path, x: NDArray[Any], within: float = 1e-5) -> None:
    """Both results are equal in shape, and in value within a share of the largest."""
    theirs, mine = run(path, x, plain=True), ours(path, x)
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=within * np.abs(theirs).max())

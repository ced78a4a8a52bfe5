# SPDX-License-Identifier: Apache-2.0
"""Other engines' linear layers with the weights of ours: float32 rows in, float32 rows out.

Each maker takes ternary weights int8 [N, K], their scale [N], the number of rows M and of threads,
and returns a function of x [M, K]. All multiply the same numbers, so that their results may differ
from float64 by the quantization of the activations alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Rival = Callable[[Array], Array]
Maker = Callable[[Array, Array, int, int], Rival]

BLOCK = 128  # weights that share a scale in MatMulNBits


def _onnx_session(
    node_list: list[Any], tensors: list[Any], m: int, n: int, k: int, threads: int
) -> Rival:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(node_list, "linear", [x], [y], tensors)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda value: session.run(None, {"x": value})[0]  # type: ignore[no-any-return]


def _tensor(name: str, array: Array) -> Any:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def _few_bits(bits: int) -> Maker:
    def make(w: Array, scale: Array, m: int, threads: int) -> Rival:
        from onnx import helper

        n, k = w.shape
        blocks = -(-k // BLOCK)
        # Without zero points, the middle of the range stands for 0.
        values = np.zeros((n, blocks * BLOCK), np.uint8)
        values[:, :k] = w + (1 << (bits - 1))
        per_byte = 8 // bits
        parts = values.reshape(n, blocks, BLOCK // per_byte, per_byte)
        packed = np.zeros(parts.shape[:-1], np.uint8)
        for i in range(per_byte):
            packed |= parts[..., i] << (bits * i)
        node = helper.make_node(
            "MatMulNBits", ["x", "B", "scale"], ["y"], domain="com.microsoft",
            K=k, N=n, bits=bits, block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip
        scales = np.repeat(scale, blocks)
        return _onnx_session(
            [node], [_tensor("B", packed), _tensor("scale", scales)], m, n, k, threads
        )

    return make


def _onnx_int8(w: Array, scale: Array, m: int, threads: int) -> Rival:
    from onnx import TensorProto, helper

    n, k = w.shape
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "q_scale", "q_zero"]),
        helper.make_node("MatMulInteger", ["q", "B", "q_zero"], ["acc"]),
        helper.make_node("Cast", ["acc"], ["sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["q_scale", "scale"], ["factor"]),
        helper.make_node("Mul", ["sum", "factor"], ["y"]),
    ]
    tensors = [_tensor("B", np.ascontiguousarray(w.T)), _tensor("scale", scale)]
    return _onnx_session(nodes, tensors, m, n, k, threads)


def _openvino_int8(w: Array, scale: Array, m: int, threads: int) -> Rival:
    import openvino
    from openvino import opset13 as ops

    n, k = w.shape
    x = ops.parameter([m, k], np.float32)
    weights = ops.multiply(ops.convert(ops.constant(w), np.float32), ops.constant(scale[:, None]))
    model = openvino.Model([ops.matmul(x, weights, False, True)], [x])
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    return lambda value: request.infer([value], share_inputs=True, share_outputs=True)[0]  # type: ignore[no-any-return]


def _torch_int8(w: Array, scale: Array, m: int, threads: int) -> Rival:
    n, k = w.shape
    dense = torch.nn.Linear(k, n, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(w * scale[:, None]))
    kind = {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
    net = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(dense), kind)
    return lambda value: net(torch.from_numpy(value)).numpy()  # type: ignore[no-any-return]


_MAKERS: dict[str, tuple[str, Maker]] = {
    "onnxruntime 2 bit": ("onnxruntime", _few_bits(2)),
    "onnxruntime 4 bit": ("onnxruntime", _few_bits(4)),
    "onnxruntime int8": ("onnxruntime", _onnx_int8),
    "openvino int8": ("openvino", _openvino_int8),
    "torch int8": ("torch", _torch_int8),
}


def rivals() -> dict[str, Maker]:
    """The makers whose packages are installed."""
    return {
        name: make for name, (package, make) in _MAKERS.items() if importlib.util.find_spec(package)
    }

# SPDX-License-Identifier: Apache-2.0
"""Run a program in NumPy, one node at a time: the oracle the native engine is held to.

Every integer node, and every float made by one, is exact (`ternary_ops.reference`); float
convolutions and linear layers add up in float64 and are rounded once, so the engine's own float32
sums are held to them within a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ternary_ops import reference
from ternary_ops.layout import codes
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.shapes import infer, resized
from ternary_ops.program.weight import Array, Params

# A float array, or (q, scale, zero point): what the reference calls an operand.
Operand: TypeAlias = Any


def simulate(graph: Graph, x: NDArray[np.float32]) -> list[Array]:
    """Value of every node for x, float32 [N, C, H, W] or [N, K]; raises UnsupportedShape."""
    infer(graph, x.shape[0], *x.shape[2:])
    arrays: list[Array] = []
    for node in graph.nodes:
        if node.op == "input":
            arrays.append(np.asarray(x, np.float32))
            continue
        arrays.append(node_value(graph, node, arrays))
    return arrays


def node_value(graph: Graph, node: Node, arrays: Sequence[Array]) -> Array:
    """Value of one node, not the input, from those of the nodes before it."""
    operands = [_operand(arrays[j], graph.values[j].y) for j in node.inputs]
    return _RUN[node.op](graph, node, operands)


def _operand(array: Array, y: Params | None) -> Operand:
    return array if y is None else (array, *y)


def _layer(graph: Graph, node: Node, operands: Sequence[Operand]) -> Array:
    w, at = graph.weight(node), node.attrs
    x, *others = operands
    gate = others.pop(0) if at.get("gate") else None
    residual = others[0] if others else None
    fine = graph.values[node.inputs[0]].fine
    filters = codes.channels_first(codes.fine_filters(w.array) if fine else w.array)
    quantized = isinstance(x, tuple)
    if node.op == "conv2d":
        window = at["stride"], at["padding"], at["dilation"], at["groups"]
        acc: Array = (
            reference.conv2d_acc(x[0], x[2], filters, *window)
            if quantized
            else reference.conv2d(x, filters, None, None, *window)
        )
    else:
        rows = filters[:, :, 0, 0]
        acc = reference.linear_acc(x[0], x[2], rows) if quantized else reference.linear(x, rows)
    scale = w.effective_scale((x[1], x[2]) if quantized else None)
    ends = {"slope": w.slope, "gate": gate, **_activation(node)}
    return reference.epilogue(acc, scale, w.bias, residual, **ends)


def _quantize(node: Node, x: Array) -> Array:
    return (reference.quantize_fine if node.attrs["fine"] else reference.quantize)(
        x, *node.attrs["y"]
    )


def _pick(x: Operand) -> Array:
    """The array of an operand: max pool and flatten keep scale and zero point."""
    array: Array = x[0] if isinstance(x, tuple) else x
    return array


def _resize(graph: Graph, node: Node, operands: Sequence[Operand]) -> Array:
    at = node.attrs
    height, width = resized(node, [_pick(v).shape for v in operands])[2:]
    size = height, width
    return reference.resize(operands[0], size, at["mode"], at["align"], at["zoom"])


def _layer_norm(graph: Graph, node: Node, operands: Sequence[Operand]) -> Array:
    w = graph.weight(node)
    out = reference.layer_norm(operands[0], w.array.ravel(), w.bias, node.attrs["eps"])
    return out.astype(np.float32)


def _activation(node: Node) -> dict[str, Any]:
    lo, hi = node.attrs["clamp"]
    return {"lo": lo, "hi": hi, "y": node.attrs["y"]}


_RUN: dict[str, Callable[[Graph, Node, Sequence[Operand]], Array]] = {
    "quantize": lambda g, node, v: _quantize(node, v[0]),
    "dequantize": lambda g, node, v: reference.dequantize(*v[0]),
    "conv2d": _layer,
    "linear": _layer,
    "max_pool2d": lambda g, node, v: reference.max_pool2d(_pick(v[0]), **node.attrs),
    "avg_pool2d": lambda g, node, v: reference.avg_pool2d(v[0], **node.attrs),
    "adaptive_avg_pool2d": lambda g, node, v: reference.adaptive_avg_pool2d(v[0], **node.attrs),
    "add": lambda g, node, v: reference.add(v[0], v[1], **_activation(node)),
    "clamp": lambda g, node, v: reference.clamp(v[0], **_activation(node)),
    "flatten": lambda g, node, v: reference.flatten(_pick(v[0])),
    "activation": lambda g, node, v: reference.activation(v[0], **node.attrs),
    "mul": lambda g, node, v: reference.mul(v[0], v[1], **_activation(node)),
    "concat": lambda g, node, v: reference.concat(v, **node.attrs),
    "slice": lambda g, node, v: _pick(v[0])[:, node.attrs["begin"] : node.attrs["end"]],
    "pixel_shuffle": lambda g, node, v: reference.pixel_shuffle(_pick(v[0]), **node.attrs),
    "pixel_unshuffle": lambda g, node, v: reference.pixel_unshuffle(_pick(v[0]), **node.attrs),
    "channel_shuffle": lambda g, node, v: reference.channel_shuffle(_pick(v[0]), **node.attrs),
    "resize": _resize,
    "unflatten": lambda g, node, v: _pick(v[0])[:, :, None, None],
    "softmax": lambda g, node, v: reference.softmax(v[0]).astype(np.float32),
    "layer_norm": _layer_norm,
}

# SPDX-License-Identifier: Apache-2.0
"""Hand a program to the native engine, node by node; engine ids are node numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ternary_ops import _native
from ternary_ops.layout import codes
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Array, Params, Weight
from ternary_ops.reference import activations

_CHOOSE_SPARSE = -1  # the engine compares the density of the filters with what its kernels win


def build(graph: Graph, sparse: Mapping[int, bool] | None = None) -> Any:
    """A `_core.Engine` that runs `graph`; `sparse` says for layers, by node, whether to skip empty
    quads, and the engine chooses for those it leaves out.
    """
    engine, choices = _native.core().Engine(), sparse or {}
    for i, node in enumerate(graph.nodes):
        made = _add(engine, graph, node, int(choices.get(i, _CHOOSE_SPARSE)))
        if made != i:
            raise RuntimeError(f"the native engine numbered node {i} as {made}")
    engine.output(len(graph.nodes) - 1)
    return engine


def _add(engine: Any, graph: Graph, node: Node, sparse: int) -> int:
    """Append one node; returns its id in the engine."""
    at, x = node.attrs, node.inputs
    if node.op == "input":
        return int(engine.input(at["c"], at["rank"]))
    if node.op in ("conv2d", "linear"):
        return int(_add_layer(engine, graph, node, sparse))
    if node.op in _OWN:
        return int(_OWN[node.op](engine, graph, node))
    arguments: list[Any] = list(x)
    for name, value in at.items():
        if name == "size":
            arguments += value
        elif name not in ("y", "clamp"):
            arguments.append(0 if value is None else value)  # an average without a divisor
    if "clamp" in at:
        arguments += _bounds(node)
    if "y" in at:
        arguments += _output(at["y"])
    return int(getattr(engine, node.op)(*arguments))


def _add_layer(engine: Any, graph: Graph, node: Node, sparse: int) -> Any:
    at, w = node.attrs, graph.weight(node)
    x, *others = node.inputs
    gate = others.pop(0) if at.get("gate") else -1
    residual = others[0] if others else -1
    wtype, values, scale = _values(w, graph.values[x].y, node.op == "linear")
    o, r, s, i = w.shape
    if graph.values[x].fine:
        values = codes.fine_filters(w.array)
        i = values.shape[3]
    ends = *_bounds(node), *_output(at["y"]), sparse
    if node.op == "linear":
        return engine.linear(x, residual, wtype, values, o, i, scale, w.bias, *ends)
    window = at["stride"], at["padding"], at["dilation"], at["groups"]
    slope = None if w.slope is None else np.broadcast_to(w.slope, o)
    vectors = scale, w.bias, slope
    return engine.conv2d(x, residual, gate, wtype, values, o, r, s, i, *vectors, *window, *ends)


def _add_activation(engine: Any, graph: Graph, node: Node) -> Any:
    """u8: what the function makes of each code. Floats: the engine has functions of its own."""
    at, x = node.attrs, graph.values[node.inputs[0]].y
    table: Array = np.empty(0, np.float32)
    if x is not None:
        table = activations.over_codes(at["fn"], at["params"], *x)
    return engine.activation(*node.inputs, at["fn"], at["params"], table, *_output(at["y"]))


def _add_resize(engine: Any, graph: Graph, node: Node) -> Any:
    x, like = (*node.inputs, -1)[:2]
    at = node.attrs
    bilinear = at["mode"] == "bilinear"
    return engine.resize(x, like, bilinear, at["align"], at["size"] or (0, 0), at["zoom"] or (0, 0))


def _add_layer_norm(engine: Any, graph: Graph, node: Node) -> Any:
    w = graph.weight(node)
    bias = np.zeros(w.shape[0], np.float32) if w.bias is None else w.bias
    return engine.layer_norm(*node.inputs, w.array.ravel(), bias, node.attrs["eps"])


_OWN = {
    "quantize": lambda engine, graph, node: engine.quantize(
        *node.inputs, *node.attrs["y"], node.attrs["fine"]
    ),
    "activation": _add_activation,
    "concat": lambda engine, graph, node: engine.concat(node.inputs, *_output(node.attrs["y"])),
    "resize": _add_resize,
    "layer_norm": _add_layer_norm,
}


def _values(w: Weight, x: Params | None, linear: bool) -> tuple[str, Array, Array]:
    """Kind, values and scale as the kernels read them. Integer weights of a convolution that meet
    float input become floats: with no integers to multiply, only the file gains from the codes.
    Linear layers read them as they are, since fewer bytes are what makes these fast.
    """
    if x is None and w.scale is not None and not linear:
        return "float", w.array * w.scale[:, None, None, None], np.ones_like(w.scale)
    scale = w.effective_scale(x)
    if isinstance(w.values, codes.TernaryCodes):
        return w.kind, w.values.codes, scale
    if w.kind == "ternary":
        return w.kind, _native.core().pack_codes(w.values), scale
    if w.kind == "int8":
        return w.kind, codes.pad_int8(w.array), scale
    return w.kind, w.array, scale


def _bounds(node: Node) -> tuple[float, float]:
    lo, hi = node.attrs["clamp"]
    return -math.inf if lo is None else lo, math.inf if hi is None else hi


def _output(y: Params | None) -> Params:
    """A scale of 0 asks for float output."""
    return (0.0, 0) if y is None else y

# SPDX-License-Identifier: Apache-2.0
"""Hand a program to the native engine, node by node; engine ids are node numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ternary_ops import _native
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Params

_CHOOSE_SPARSE = -1  # the engine compares the density of the filters with what its kernels win


def build(graph: Graph, sparse: Mapping[int, bool] | None = None) -> Any:
    """A `_core.Engine` that runs `graph`; `sparse` says for layers, by node, whether to skip empty
    quads, and the engine chooses for those it leaves out.
    """
    engine, choices = _native.core().Engine(), sparse or {}
    for i, node in enumerate(graph.nodes):
        at = {**node.attrs, **node.operator.native(graph.bound(node))}
        at["sparse"] = int(choices.get(i, _CHOOSE_SPARSE))
        made = int(_METHODS.get(node.op, _add)(engine, node, at))
        if made != i:
            raise RuntimeError(f"the native engine numbered node {i} as {made}")
    engine.output(len(graph.nodes) - 1)
    return engine


def _add(engine: Any, node: Node, at: dict[str, Any]) -> Any:
    arguments: list[Any] = list(node.inputs)
    for name in node.attrs:
        if name == "size":
            arguments += at[name]
        elif name not in ("y", "clamp"):
            arguments.append(0 if at[name] is None else at[name])  # an average without a divisor
    if "clamp" in at:
        arguments += _bounds(at)
    if "y" in at:
        arguments += _output(at)
    return getattr(engine, node.op)(*arguments)


def _add_layer(engine: Any, node: Node, at: dict[str, Any]) -> Any:
    x, *others = node.inputs
    gate = others.pop(0) if at.get("gate") else -1
    residual = others[0] if others else -1
    o, r, s, i = at["shape"]
    ends = *_bounds(at), *_output(at), at["sparse"]
    filters = at["kind"], at["weights"]
    if node.op == "linear":
        return engine.linear(x, residual, *filters, o, i, at["scale"], at["bias"], *ends)
    window = at["stride"], at["padding"], at["dilation"], at["groups"]
    vectors = at["scale"], at["bias"], at["slope"]
    return engine.conv2d(x, residual, gate, *filters, o, r, s, i, *vectors, *window, *ends)


def _add_activation(engine: Any, node: Node, at: dict[str, Any]) -> Any:
    table = at.get("table", np.empty(0, np.float32))
    return engine.activation(*node.inputs, at["fn"], at["params"], table, *_output(at))


def _add_resize(engine: Any, node: Node, at: dict[str, Any]) -> Any:
    x, like = (*node.inputs, -1)[:2]
    sizes = at["size"] or (0, 0), at["zoom"] or (0, 0)
    return engine.resize(x, like, at["mode"] == "bilinear", at["align"], *sizes)


_METHODS: dict[str, Callable[[Any, Node, dict[str, Any]], Any]] = {
    "input": lambda engine, node, at: engine.input(at["c"], at["rank"]),
    "quantize": lambda engine, node, at: engine.quantize(*node.inputs, *at["y"], at["fine"]),
    "conv2d": _add_layer,
    "linear": _add_layer,
    "activation": _add_activation,
    "concat": lambda engine, node, at: engine.concat(node.inputs, *_output(at)),
    "resize": _add_resize,
    "layer_norm": lambda engine, node, at: engine.layer_norm(
        *node.inputs, at["weight"], at["bias"], at["eps"]
    ),
}


def _bounds(at: dict[str, Any]) -> tuple[float, float]:
    lo, hi = at["clamp"]
    return -math.inf if lo is None else lo, math.inf if hi is None else hi


def _output(at: dict[str, Any]) -> Params:
    """A scale of 0 asks for float output."""
    return (0.0, 0) if at["y"] is None else at["y"]

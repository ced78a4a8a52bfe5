# SPDX-License-Identifier: Apache-2.0
"""Hand a program to the native engine, node by node, with attributes by name; engine ids are node
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ternary_ops import _native
from ternary_ops.engine.ir import Graph, Node
from ternary_ops.engine.weight import Params, Weight
from ternary_ops.ops import codes, functions

Attributes = dict[str, Any]


def build(graph: Graph, sparse: Mapping[int, bool] | None = None) -> Any:
    """A `_core.Engine` that runs `graph`; `sparse` says for layers, by node, whether to skip empty
    quads, and the engine chooses for those it leaves out.
    """
    engine, choices = _native.core().Engine(), sparse or {}
    for i, node in enumerate(graph.nodes):
        attrs = dict(node.attrs)
        if node.op in _DERIVED:
            attrs |= _DERIVED[node.op](graph, node)
        if "w" in attrs:  # an index into the graph's weights, of which the engine has none
            del attrs["w"]
        if i in choices:
            attrs["sparse"] = bool(choices[i])
        made = engine.add(node.op, list(node.inputs), attrs)
        if made != i:
            raise RuntimeError(f"the native engine numbered node {i} as {made}")
    engine.output(len(graph.nodes) - 1)
    return engine


def _layer(graph: Graph, node: Node) -> Attributes:
    """Weights as the kernels read them."""
    x, w = graph.values[node.inputs[0]], graph.weight(node)
    attrs = {"shape": w.shape, "bias": w.bias, **_values(w, x.y, node.op == "linear")}
    if x.fine:
        attrs["weights"] = codes.fine_filters(w.array)
        attrs["shape"] = (*w.shape[:3], attrs["weights"].shape[3])
    if w.slope is not None:
        attrs["slope"] = np.ascontiguousarray(np.broadcast_to(w.slope, w.shape[0]))
    return attrs


def _activation(graph: Graph, node: Node) -> Attributes:
    """u8: what the function makes of each code. Floats: the engine has functions of its own."""
    at, x = node.attrs, graph.values[node.inputs[0]].y
    return {} if x is None else {"table": functions.over_codes(at["fn"], at["params"], *x)}


def _layer_norm(graph: Graph, node: Node) -> Attributes:
    w = graph.weight(node)
    bias = np.zeros(w.shape[0], np.float32) if w.bias is None else w.bias
    return {"weight": w.array.ravel(), "bias": bias}


# What the engine reads beside a node's own attributes.
_DERIVED: dict[str, Callable[[Graph, Node], Attributes]] = {
    "conv2d": _layer,
    "linear": _layer,
    "activation": _activation,
    "layer_norm": _layer_norm,
}


def _values(w: Weight, x: Params | None, linear: bool) -> Attributes:
    """Kind, values and scale as the kernels read them. Integer weights of a convolution that meet
    float input become floats: with no integers to multiply, only the file gains from the codes.
    Linear layers read them as they are, since fewer bytes are what makes these fast.
    """
    if x is None and w.scale is not None and not linear:
        values = w.array * w.scale[:, None, None, None]
        return {"kind": "float", "weights": values, "scale": np.ones_like(w.scale)}
    attrs = {"kind": w.kind, "weights": w.array, "scale": w.effective_scale(x)}
    if isinstance(w.values, codes.TernaryCodes):
        attrs["weights"] = w.values.codes
    elif w.kind == "ternary":
        attrs["weights"] = _native.core().pack_codes(w.values)
    elif w.kind == "int8":
        attrs["weights"] = codes.pad_int8(w.array)
    return attrs

# SPDX-License-Identifier: Apache-2.0
"""A graph as JSON and named arrays, the content of a program file.

{"nodes": [[op, inputs, attributes], ...], "weights": [[name, kind, vectors], ...]}; inputs are left
out when they are the node before, attributes when they are the defaults. The arrays of weight i are
"i.w" (values [O, R, S, I]), "i.s" (scale, absent for kind float), "i.b" (bias) where `vectors` has
bit 1 and "i.a" (slope) where it has bit 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ternary_ops.errors import FormatError, need
from ternary_ops.layout.codes import TernaryCodes
from ternary_ops.program import attributes
from ternary_ops.program.graph import MAX_NODES, Graph, Node
from ternary_ops.program.weight import Array, Weight

_DO = attributes.REWRITE


def to_index(graph: Graph) -> dict[str, Any]:
    """The JSON part of a program."""
    nodes = []
    for i, node in enumerate(graph.nodes):
        entry: list[Any] = [node.op]
        if list(node.inputs) != _node_before(i):
            entry.append(list(node.inputs))
        if said := node.operator.without_defaults(node.attrs):
            entry.append({name: _plain(value) for name, value in said.items()})
        nodes.append(entry)
    weights = [
        [w.name, w.kind, (w.bias is not None) + 2 * (w.slope is not None)] for w in graph.weights
    ]
    return {"nodes": nodes, "weights": weights}


def to_arrays(graph: Graph) -> dict[str, Array | TernaryCodes]:
    """The arrays of every weight, by name."""
    arrays: dict[str, Array | TernaryCodes] = {}
    for i, w in enumerate(graph.weights):
        for key, array in zip(_keys(i), (w.values, w.scale, w.bias, w.slope), strict=True):
            if array is not None:
                arrays[key] = array
    return arrays


def from_index(index: Any, arrays: Mapping[str, Array | TernaryCodes]) -> Graph:
    """Undo to_index and to_arrays; raises FormatError."""
    if type(index) is not dict or set(index) != {"nodes", "weights"}:
        raise FormatError(need("nodes and weights in a program's index", "other keys", _DO))
    entries, weights = index["nodes"], index["weights"]
    if type(entries) is not list or type(weights) is not list:
        raise FormatError(need("nodes and weights as lists", "something else", _DO))
    for what, found, most in (
        ("nodes", len(entries), MAX_NODES),
        ("weights", len(weights), attributes.MAX_WEIGHTS),
    ):
        if found > most:
            raise FormatError(need(f"at most {most} {what} in a program", found, _DO))
    made: tuple[Weight, ...] = tuple(_weight(i, entry, arrays) for i, entry in enumerate(weights))
    graph = Graph(tuple(_node(i, entry) for i, entry in enumerate(entries)), made)
    stray = sorted(set(arrays) - set(to_arrays(graph)))
    if stray:
        raise FormatError(need("arrays of weights", repr(stray[0]), _DO))
    return graph


def _node_before(i: int) -> list[int]:
    return [i - 1] if i else []


def _keys(i: int) -> tuple[str, str, str, str]:
    return f"{i}.w", f"{i}.s", f"{i}.b", f"{i}.a"


def _plain(value: Any) -> Any:
    """JSON form; a float becomes the shortest decimal that is the same float32."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return float(str(np.float32(value))) if type(value) is float else value


def _node(i: int, entry: Any) -> Node:
    inputs: Any = _node_before(i)
    attrs: Any = {}
    rest = list(entry) if type(entry) is list else []
    op = rest.pop(0) if rest else None
    if rest and type(rest[0]) is list:
        inputs = rest.pop(0)
    if rest and type(rest[0]) is dict:
        attrs = rest.pop(0)
    if type(op) is not str or rest:
        raise FormatError(need(f"node {i} as [op, inputs, attributes]", "something else", _DO))
    try:
        sources = [attributes.integer("an input", v, 0, MAX_NODES) for v in inputs]
        return Node(op, tuple(sources), attrs)
    except FormatError as e:
        raise FormatError(f"node {i}: {e}") from None


def _weight(i: int, entry: Any, arrays: Mapping[str, Array | TernaryCodes]) -> Weight:
    name, kind, vectors = attributes.items(f"weight {i}", entry, 3)
    attributes.integer(f"weight {i}: its vectors", vectors, 0, 3)
    values, scale, bias, slope = _keys(i)
    wanted = [values] + [scale] * (kind != "float") + [bias] * (vectors & 1)
    wanted += [slope] * (vectors >> 1)
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise FormatError(need(f"the array {missing[0]} of weight {i}", "none", _DO))
    kept = {key: arrays[key] for key in wanted}
    given: Any = [kept[values], *(kept.get(key) for key in (scale, bias, slope))]
    return Weight(name, kind, *given)

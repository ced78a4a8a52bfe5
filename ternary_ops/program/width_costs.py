# SPDX-License-Identifier: Apache-2.0
"""What a layer costs with fewer channels: each layer alone, at a grid of widths, random codes.

Alone a layer reads what was just written, and has neither gate nor residual: its time is no more
than its ratio to the layer alone at full width, by which the table's milliseconds of the whole
program are scaled. Between widths and shares of empty quads ratios are interpolated. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.layer_costs import CostTable, LayerCost, Turns, Widths, take_turns
from ternary_ops.program.native import build
from ternary_ops.program.program import Program
from ternary_ops.program.random_codes import Emptied
from ternary_ops.program.shapes import Shape, infer_from
from ternary_ops.program.weight import Array, Weight

WIDTHS = (0.25, 0.5, 0.75, 1.0)
ZEROS = (0.0, 0.75, 0.9)
_SECONDS = 0.01  # of timing one layer alone


def with_widths(table: CostTable, program: Program) -> CostTable:
    """The table, with ratios of its layers at WIDTHS; layers of one shape are measured once.

    It must have been measured from this program, on as many threads as are in use now.
    """
    graph, shapes = program.graph, infer_from(program.graph, table.sample)
    known: dict[Any, dict[str, Widths]] = {}
    layers: dict[str, LayerCost] = {}
    for node in graph.nodes:
        name = graph.weight(node).name if "w" in node.attrs else ""
        if name not in table.layers or name in layers:
            continue
        old = table.layers[name]
        key = _key(graph, node, shapes)
        if key not in known:
            x = shapes[node.inputs[0]]
            known[key] = {kind: _ratios(graph, node, x, kind) for kind in old.curves}
        layers[name] = replace(old, widths=known[key])
    return replace(table, layers={**table.layers, **layers})


def _key(graph: Graph, node: Node, shapes: Sequence[Shape]) -> Any:
    """What decides the time of a layer alone."""
    geometry = {k: v for k, v in node.attrs.items() if k not in ("w", "y", "clamp", "gate")}
    ends = graph.values[node.inputs[0]].y is None, node.attrs["y"] is None
    return node.op, str(geometry), graph.weight(node).shape, shapes[node.inputs[0]], ends


def _ratios(graph: Graph, node: Node, x: Shape, kind: str) -> Widths:
    engines: dict[tuple[float, float, float], tuple[Turns, Any]] = {}
    grouped = node.attrs.get("groups", 1) > 1
    for inside in WIDTHS:
        for outside in WIDTHS:
            if grouped and inside != outside:
                continue
            for zeros in ZEROS:
                alone, shape = _alone(graph, node, x, (inside, outside), kind, zeros)
                array = np.random.default_rng(0).random(shape, np.float32)
                engines[inside, outside, zeros] = Turns(build(alone)), array
    take_turns(list(engines.values()), _SECONDS)
    place = 1 + (graph.values[node.inputs[0]].y is not None)  # behind the input and its rounding
    ms = {key: timed.ms[place] for key, (timed, _) in engines.items()}
    found = np.empty((len(ZEROS), len(WIDTHS), len(WIDTHS)))
    for i, zeros in enumerate(ZEROS):
        for j, inside in enumerate(WIDTHS):
            for k, outside in enumerate(WIDTHS):
                # Of groups both ends have as many channels: the smaller number of groups is run.
                ends = (min(inside, outside),) * 2 if grouped else (inside, outside)
                found[i, j, k] = ms[(*ends, zeros)] / ms[(1.0, 1.0, zeros)]
    return Widths(ZEROS, WIDTHS, found)


def _alone(
    graph: Graph, node: Node, x: Shape, widths: tuple[float, float], kind: str, zeros: float
) -> tuple[Graph, Shape]:
    """A program of one layer with these shares of its channels, and the shape of its input."""
    value, weight, groups = graph.values[node.inputs[0]], graph.weight(node), 1
    inputs, outputs = (
        max(1, round(share * n)) for share, n in zip(widths, (x[1], weight.shape[0]), strict=True)
    )
    if (groups := node.attrs.get("groups", 1)) > 1:
        kept = max(1, round(widths[0] * groups))
        inputs, outputs, groups = x[1] // groups * kept, weight.shape[0] // groups * kept, kept
    nodes = [Node("input", (), {"c": inputs, "rank": value.rank})]
    if value.y is not None:
        nodes.append(Node("quantize", (0,), {"y": value.y, "fine": value.fine}))
    attrs = {**node.attrs, "w": 0} | ({"groups": groups} if "groups" in node.attrs else {})
    if "gate" in attrs:
        attrs["gate"] = False
    nodes.append(Node(node.op, (len(nodes) - 1,), attrs))
    if attrs["y"] is not None:
        nodes.append(Node("dequantize", (len(nodes) - 1,)))
    bank = _narrowed(weight, inputs // groups, outputs)
    whole = Graph(tuple(nodes), (bank,))
    sizes = (x[0], inputs, *x[2:])
    shape = (x[0], x[2], inputs) if value.rank == 3 else sizes
    return Emptied(whole, [bank.name]).at(zeros, kind), shape


def _narrowed(weight: Weight, inputs: int, outputs: int) -> Weight:
    def cut(vector: Array | None) -> Array | None:
        return vector if vector is None or len(vector) == 1 else vector[:outputs]

    values = np.ascontiguousarray(weight.array[:outputs, :, :, :inputs])
    scale, bias, slope = cut(weight.scale), cut(weight.bias), cut(weight.slope)
    return Weight(weight.name, weight.kind, values, scale, bias, slope)

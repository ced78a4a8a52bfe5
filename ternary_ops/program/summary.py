# SPDX-License-Identifier: Apache-2.0
"""Summary of a program: rows by node, totals and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ternary_ops.program.graph import Graph
from ternary_ops.program.shapes import Shape, macs
from ternary_ops.program.weight import Weight
from ternary_ops.table import Table

_BITS = {"ternary": 2, "int8": 8, "float": 32}


def rows(graph: Graph, shapes: Sequence[Shape]) -> list[dict[str, Any]]:
    """Per node: node, name, op, shape, dtype, macs (dense), integer (its input is uint8); layers
    also kind, bits, bytes, zeros (share of zero weights) and density (share of quads that hold
    anything), None for other nodes.
    """
    described = []
    for i, (node, shape, count) in enumerate(
        zip(graph.nodes, shapes, macs(graph, shapes), strict=True)
    ):
        w = graph.weight(node) if "w" in node.attrs else None
        described.append(
            {
                "node": i,
                "name": "" if w is None else w.name,
                "op": node.op,
                "shape": shape,
                "dtype": "float32" if graph.values[i].y is None else "uint8",
                "macs": count,
                "kind": None if w is None else w.kind,
                "integer": bool(node.inputs) and graph.values[node.inputs[0]].y is not None,
                "bits": None if w is None else _BITS[w.kind],
                "bytes": None if w is None else stored_bytes(w),
                "zeros": None if w is None else 1 - np.count_nonzero(w.array) / math.prod(w.shape),
                "density": None if w is None else w.density,
            }
        )
    return described


def speed(
    row: dict[str, Any], ms: float, peaks: tuple[float, float], threads: int
) -> dict[str, float | None]:
    """ms, gmac_s and of_ceiling of one of `rows`; peaks: GMAC/s of a core in int8 and in float."""
    if row["kind"] is None or ms <= 0:
        return {"ms": ms, "gmac_s": None, "of_ceiling": None}
    rate = row["macs"] / ms / 1e6
    # Integer weights that meet a float input multiply floats.
    peak = peaks[1 if row["kind"] == "float" or not row["integer"] else 0]
    return {"ms": ms, "gmac_s": rate, "of_ceiling": rate / peak / threads}


def stored_bytes(w: Weight) -> int:
    """Bytes of a weight at its bit width, with its vectors, before entropy coding."""
    vectors = sum(v.nbytes for v in (w.scale, w.bias, w.slope) if v is not None)
    return -(-math.prod(w.shape) * _BITS[w.kind] // 8) + vectors


def totals(graph: Graph, shapes: Sequence[Shape]) -> dict[str, Any]:
    """Nodes, weights, zeros (their share), bytes, macs, shapes of input and output."""
    banks = [w.array for w in graph.weights]
    weights = sum(array.size for array in banks)
    filled = sum(int(np.count_nonzero(array)) for array in banks)
    return {
        "nodes": len(graph.nodes),
        "weights": weights,
        "zeros": 1 - filled / max(weights, 1),
        "bytes": sum(stored_bytes(w) for w in graph.weights),
        "macs": sum(macs(graph, shapes)),
        "input": shapes[0],
        "output": shapes[-1],
    }


def zeros_planned(w: Weight) -> tuple[str, str]:
    """The zeros a plan asked for and those that are there, "90.0 % of 1x4" and "88.2 %", or ""."""
    if w.planned is None or w.reached is None:
        return "", ""
    return f"{100 * w.planned.zeros:.1f} % of {w.planned.name}", f"{100 * w.reached:.1f} %"


def table(graph: Graph, shapes: Sequence[Shape]) -> Table:
    """One line per node; the zeros that were planned stand beside those that are there."""
    lines, asked = [], any(w.planned is not None for w in graph.weights)
    for row in rows(graph, shapes):
        line = [f"{row['node']} {row['op']}", row["name"], _times(row["shape"]), row["dtype"]]
        if row["kind"] is None:
            line += [""] * 4
        else:
            line += [f"{row['density']:.1%}", str(row["bits"]), f"{row['bytes']:,}"]
            line.append(f"{row['macs']:,}")
        if asked:
            node = graph.nodes[row["node"]]
            line += zeros_planned(graph.weight(node)) if "w" in node.attrs else ("", "")
        lines.append(line)
    total = totals(graph, shapes)
    notes = (
        f"{total['weights']:,} weights, {total['zeros']:.1%} of them zero",
        f"{total['bytes']:,} bytes before entropy coding",
        f"{total['macs']:,} dense multiply-adds",
    )
    columns = ["node", "layer", "shape", "dtype", "quads", "bits", "bytes", "MACs"]
    columns += ["planned zeros", "there"] * asked
    return Table(columns, lines, notes=notes)


def _times(shape: Shape) -> str:
    return "x".join(str(n) for n in shape)

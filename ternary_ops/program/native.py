# SPDX-License-Identifier: Apache-2.0
"""Hand a program to the native engine, node by node; engine ids are node numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ternary_ops import _native
from ternary_ops.program.graph import Graph


def build(graph: Graph, sparse: Mapping[int, bool] | None = None) -> Any:
    """A `_core.Engine` that runs `graph`; `sparse` says for layers, by node, whether to skip empty
    quads, and the engine chooses for those it leaves out.
    """
    engine, choices = _native.core().Engine(), sparse or {}
    for i, node in enumerate(graph.nodes):
        attrs = {**node.attrs, **node.operator.native(graph.bound_nodes[i])}
        attrs.pop("w", None)  # an index into the graph's weights, of which the engine has none
        if i in choices:
            attrs["sparse"] = bool(choices[i])
        made = engine.add(node.op, list(node.inputs), attrs)
        if made != i:
            raise RuntimeError(f"the native engine numbered node {i} as {made}")
    engine.output(len(graph.nodes) - 1)
    return engine

# SPDX-License-Identifier: Apache-2.0
"""Run a program in NumPy, one node at a time: the oracle the native engine is held to.

Every integer node, and every float made by one, is exact (`ternary_ops.reference`); float
convolutions and linear layers add up in float64 and are rounded once, so the engine's own float32
sums are held to them within a bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.operator import Operand, swap_tokens
from ternary_ops.program.shapes import infer_from
from ternary_ops.program.weight import Array, Params


def simulate(graph: Graph, x: NDArray[np.float32]) -> list[Array]:
    """Value of every node for x, float32 [N, C, H, W], [N, L, C] or [N, C].

    Raises UnsupportedShape.
    """
    infer_from(graph, x.shape)
    arrays: list[Array] = [np.asarray(x, np.float32)]
    for node in graph.nodes[1:]:
        arrays.append(node_value(graph, node, arrays))
    return arrays


def node_value(graph: Graph, node: Node, arrays: Sequence[Array]) -> Array:
    """Value of one node, not the input, from those of the nodes before it."""
    operands = [_operand(arrays[j], graph.values[j].y) for j in node.inputs]
    return swap_tokens(node.operator.reference(graph.bound(node), operands))


def _operand(array: Array, y: Params | None) -> Operand:
    array = swap_tokens(array)
    return array if y is None else (array, *y)

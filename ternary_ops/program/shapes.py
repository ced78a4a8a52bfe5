# SPDX-License-Identifier: Apache-2.0
"""Shape inference: shape and multiply-adds of every node for one input size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ternary_ops.errors import UnsupportedShape, need
from ternary_ops.program.graph import Graph
from ternary_ops.program.operator import Shape, to_outside

__all__ = ["Shape", "infer", "infer_from", "macs", "sizes_of"]

MAX_ELEMENTS = 2**31 - 1  # of one value: the native engine counts cells in 32 bits


def infer(graph: Graph, n: int, *sizes: int) -> list[Shape]:
    """Shape of every node's array for n images of h x w, or n times so many tokens.

    Rows have no sizes: those given to a program of rank 2 mean nothing, and sizes left out are 1.
    Raises UnsupportedShape naming the node that does not fit.
    """
    if n < 0 or min(sizes, default=1) < 1:
        wanted = "N >= 0 images of H, W >= 1 as a program's input"
        raise UnsupportedShape(need(wanted, (n, *sizes), "Check x.shape."))
    rank = graph.values[0].rank
    given: Shape = (n, graph.nodes[0].attrs["c"], *sizes, 1, 1)[:rank]
    shapes: list[Shape] = []
    for i, node in enumerate(graph.nodes):
        try:
            inputs = [shapes[j] for j in node.inputs] or [given]
            shapes.append(node.operator.shape(graph.bound_nodes[i], inputs))
            if math.prod(shapes[i][1:]) * max(n, 1) > MAX_ELEMENTS:
                wanted = f"at most {MAX_ELEMENTS} elements"
                raise UnsupportedShape(need(wanted, list(shapes[i]), "Split the batch."))
        except UnsupportedShape as e:
            raise UnsupportedShape(f"node {i} ({node.op}): {e}") from None
    return [to_outside(shape) for shape in shapes]


def infer_from(graph: Graph, shape: Sequence[int]) -> list[Shape]:
    """Like `infer`, for an input array of this shape, whose channels are not looked at."""
    return infer(graph, shape[0], *sizes_of(shape))


def sizes_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Height and width of images, tokens of [N, L, C], nothing of rows."""
    return tuple(shape[1:2] if len(shape) == 3 else shape[2:])


def macs(graph: Graph, shapes: Sequence[Shape]) -> list[int]:
    """Multiply-adds of every node as a dense network would do them (`shapes` from infer)."""
    return [
        node.operator.macs(bound, shape)
        for node, bound, shape in zip(graph.nodes, graph.bound_nodes, shapes, strict=True)
    ]

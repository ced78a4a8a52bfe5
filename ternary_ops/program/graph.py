# SPDX-License-Identifier: Apache-2.0
"""The program: a list of nodes and a list of weights. NumPy only.

Node i makes value i. Node 0 is the input, the last node is the output, every other value is used. A
value is float32, or uint8 with a scale and a zero point (`Value.y`); integer nodes may end in
floats, float nodes make floats and `quantize` alone leads back. What each operator is and takes
says `program/ops`.

A Graph that exists is valid: its constructor checks whatever does not depend on the image size, and
raises FormatError; `shapes.infer` checks the rest and raises UnsupportedShape. A hostile file thus
never reaches the native engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ternary_ops.errors import FormatError, need
from ternary_ops.program import operator, ops
from ternary_ops.program.attributes import REWRITE
from ternary_ops.program.operator import BoundNode, Operator, Value
from ternary_ops.program.weight import Weight

__all__ = ["MAX_NODES", "Graph", "Node", "Value"]

MAX_NODES = 2**16


@dataclass(frozen=True)
class Node:
    """One operation; `attrs` is checked and completed with the defaults (raises FormatError)."""

    op: str
    inputs: tuple[int, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check and complete the attributes."""
        full = operator.find(self.op).completed(len(self.inputs), self.attrs)
        object.__setattr__(self, "attrs", full)

    @property
    def operator(self) -> Operator:
        """The Operator that `op` names."""
        return ops.OPS[self.op]


@dataclass(frozen=True, eq=False)
class Graph:
    """A program. Raises FormatError unless it is valid in every detail.

    values, bound_nodes: by node, what it makes, and the node with what its numbers stand for.
    """

    nodes: tuple[Node, ...]
    weights: tuple[Weight, ...]
    values: tuple[Value, ...] = field(init=False)
    bound_nodes: tuple[BoundNode, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the nodes in order."""
        if not 2 <= len(self.nodes) <= MAX_NODES:
            wanted = f"a program of 2 to {MAX_NODES} nodes"
            raise FormatError(need(wanted, len(self.nodes), REWRITE))
        values: list[Value] = []
        read: list[BoundNode] = []
        for i, node in enumerate(self.nodes):
            try:
                read.append(checked(node, self.weights, values))
                values.append(node.operator.value(read[i]))
            except FormatError as e:
                raise FormatError(f"node {i} ({node.op}): {e}") from None
        if values[-1].y is not None:
            raise FormatError(need("a last node that makes floats", "uint8", REWRITE))
        _check_all_used(self)
        object.__setattr__(self, "values", tuple(values))
        object.__setattr__(self, "bound_nodes", tuple(read))

    def weight(self, node: Node) -> Weight:
        """The weight of a node that has one."""
        index: int = node.attrs["w"]
        return self.weights[index]

    def bound(self, node: Node) -> BoundNode:
        """The node with the values that it reads and its weight."""
        return bound(node, self.weights, self.values)


def _check_all_used(graph: Graph) -> None:
    used = {i for node in graph.nodes for i in node.inputs} | {len(graph.nodes) - 1}
    idle = sorted(set(range(len(graph.nodes))) - used)
    if idle:
        raise FormatError(need("a use of every value", f"node {idle[0]} that is not", REWRITE))
    layers = {node.attrs["w"] for node in graph.nodes if "w" in node.attrs}
    spare = sorted(set(range(len(graph.weights))) - layers)
    if spare:
        raise FormatError(need("a use of every weight", f"weight {spare[0]} that is not", REWRITE))


def bound(node: Node, weights: Sequence[Weight], values: Sequence[Value]) -> BoundNode:
    """The node with its operands and weight resolved; they must exist."""
    weight = weights[node.attrs["w"]] if "w" in node.attrs else None
    return BoundNode(node.attrs, tuple(values[j] for j in node.inputs), weight)


def checked(node: Node, weights: Sequence[Weight], before: Sequence[Value]) -> BoundNode:
    """Check a node's operands and weight against its operator; returns it with them resolved. The
    operator checks the rest. Raises FormatError.
    """
    i, kind = len(before), node.operator
    if (i == 0) != (kind.inputs == (0, 0)):
        raise FormatError(need("the input as node 0, and no other", node.op, REWRITE))
    for j in node.inputs:
        if not 0 <= j < i:
            raise FormatError(need(f"inputs from nodes 0..{i - 1}", j, REWRITE))
    if "w" in node.attrs and node.attrs["w"] >= len(weights):
        raise FormatError(need(f"w < {len(weights)}", node.attrs["w"], REWRITE))
    read = bound(node, weights, before)
    if any(x.fine and (place or not kind.reads_fine) for place, x in enumerate(read.inputs)):
        wanted = "a convolution as the reader of eleven bits"
        raise FormatError(need(wanted, node.op, REWRITE))
    floats = kind.floats_only or node.attrs.get("fn") in kind.float_functions
    if floats and read.inputs[0].y is not None:
        raise FormatError(need(f"floats for {node.op}", "uint8", REWRITE))
    return read

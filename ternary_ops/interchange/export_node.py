# SPDX-License-Identifier: Apache-2.0
"""A node of a program while it becomes ONNX nodes, and the registry of who writes which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ternary_ops.interchange.graph_builder import FLOAT, INT32, GraphBuilder
from ternary_ops.program.operator import TOKENS, BoundNode, Value
from ternary_ops.program.weight import Params


@dataclass(frozen=True)
class NodeExport:
    """Export of one node: the node, its operands, the ONNX names of its inputs, the graph to write.

    exact: results are to be the program's bits (form "exact"), not what fuses to 8-bit kernels.
    """

    node: BoundNode
    value: Value
    x: tuple[str, ...]
    out: GraphBuilder
    exact: bool

    @property
    def y(self) -> Params | None:
        """Scale and zero point of the first input."""
        return self.node.inputs[0].y

    def reals(self, first: int = 0) -> list[str]:
        """The inputs from `first` on as floats."""
        pairs = zip(self.x[first:], self.node.inputs[first:], strict=True)
        return [self.out.real(name, value.y) for name, value in pairs]

    def codes(self, value: str, y: Params | None) -> str:
        """Floats rounded to codes; as they are where y is None."""
        if y is None:
            return value
        if self.exact:
            return self.out.codes(value, y)
        scale, zp = self.out.number(y[0]), self.out.number(y[1], np.uint8)
        return self.out.add("QuantizeLinear", value, scale, zp)

    def finish(self, value: str) -> str:
        """The node's bounds, then its rounding."""
        lo, hi = self.node.at.get("clamp", (None, None))
        return self.codes(self.out.clamped(value, lo, hi), self.node.at["y"])

    def whole(self, *sums: str) -> str:
        """Their sum by way of integers: ONNX Runtime would multiply the scale that follows into the
        weights, and float32 does not hold the sum of all parts.
        """
        total = self.out.add("Cast", sums[0], to=INT32)
        for other in sums[1:]:
            total = self.out.add("Add", total, self.out.add("Cast", other, to=INT32))
        return self.out.add("Cast", total, to=FLOAT)


def outside_axis(axis: int, rank: int) -> int:
    """An axis of a value where callers have it: tokens [N, C, L] are [N, L, C] for them."""
    return 3 - axis if rank == TOKENS else axis


Write: TypeAlias = Callable[[NodeExport], str]
WRITERS: dict[str, Write] = {}


def writes(op: str) -> Callable[[Write], Write]:
    """Let a function write the nodes of an operator; it returns the ONNX name of the result."""

    def register(function: Write) -> Write:
        WRITERS[op] = function
        return function

    return register

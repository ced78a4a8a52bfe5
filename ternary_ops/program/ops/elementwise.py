# SPDX-License-Identifier: Apache-2.0
"""Sums, products and bounds, number by number."""

from __future__ import annotations

from collections.abc import Sequence

from ternary_ops import reference
from ternary_ops.errors import FormatError, need
from ternary_ops.program.attributes import BOUNDS, CLAMP, OUTPUT, REWRITE, Attribute
from ternary_ops.program.operator import (
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    bounds_and_params,
    need_same,
    output_params,
    register,
)
from ternary_ops.program.weight import Array


class _Elementwise(Operator):
    attrs = {"clamp": CLAMP, "y": OUTPUT}
    per_channel = per_pixel = True

    def value(self, node: BoundNode) -> Value:
        """Operands of one rank and kind, whose channels broadcast."""
        x = node.inputs[0]
        widest = x
        for other in node.inputs[1:]:
            if (other.rank, other.y is None) != (x.rank, x.y is None):
                wanted = f"values of one kind for {self.name}"
                raise FormatError(need(wanted, "different ones", REWRITE))
            widest = self._wider(widest, other)
        return Value(x.rank, widest.channels, widest.multiple, output_params(node))

    def _wider(self, a: Value, b: Value) -> Value:
        """The one whose channels the result has."""
        if a.channels == 1 or (a.channels is None and b.channels not in (1, None)):
            return b
        if None not in (a.channels, b.channels) and b.channels not in (1, a.channels):
            wanted = f"two values of {a.channels} channels, or of one,"
            raise FormatError(need(wanted, b.channels, REWRITE))
        return a

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """The sizes of all operands; where one is 1, that of the others."""
        x = inputs[0]
        made = tuple(max(sizes) for sizes in zip(*inputs, strict=True))
        for other in inputs:
            if other[0] != x[0] or any(a not in (1, b) for a, b in zip(other, made, strict=True)):
                need_same("a second operand of shape", made, other)
        return made


@register
class Add(_Elementwise):
    """a + b; an axis of size 1, other than the batch, meets every number of the other operand's"""

    name = "add"
    reads = "a, b"
    inputs = (2, 2)

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """One float32 sum, then the bounds."""
        return reference.add(operands[0], operands[1], **bounds_and_params(node))


@register
class Mul(_Elementwise):
    """a * b, with axes of size 1 as in `add`"""

    name = "mul"
    reads = "a, b"
    inputs = (2, 2)

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """One float32 product, then the bounds."""
        return reference.mul(operands[0], operands[1], **bounds_and_params(node))


@register
class Clamp(_Elementwise):
    """min(max(x, lo), hi)"""

    name = "clamp"
    attrs = {"clamp": Attribute(BOUNDS), "y": OUTPUT}

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """The bounds alone."""
        return reference.clamp(operands[0], **bounds_and_params(node))

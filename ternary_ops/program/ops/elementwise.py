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
        """Operands of one rank and kind, with as many channels."""
        x, *others = node.inputs
        channels = x.channels
        for other in others:
            if (other.rank, other.y is None) != (x.rank, x.y is None):
                wanted = f"values of one kind for {self.name}"
                raise FormatError(need(wanted, "different ones", REWRITE))
            if None not in (channels, other.channels) and channels != other.channels:
                raise FormatError(
                    need(f"two values of {channels} channels", other.channels, REWRITE)
                )
            channels = channels if channels is not None else other.channels
        return Value(x.rank, channels, x.multiple, output_params(node))


@register
class Add(_Elementwise):
    """a + b"""

    name = "add"
    reads = "a, b"
    inputs = (2, 2)

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """One float32 sum, then the bounds."""
        return reference.add(operands[0], operands[1], **bounds_and_params(node))


@register
class Mul(_Elementwise):
    """a * b, where b [N, C, 1, 1] meets every pixel"""

    name = "mul"
    reads = "a, b (a's shape or [N, C, 1, 1])"
    inputs = (2, 2)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """That of the first."""
        x, other = inputs
        if len(x) != 4 or other[2:] != (1, 1):
            need_same("a second operand of shape", x, other)
        return x

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

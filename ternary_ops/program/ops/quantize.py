# SPDX-License-Identifier: Apache-2.0
"""The input of a program, and the way from floats to uint8 and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ternary_ops import reference
from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.layout.codes import quads
from ternary_ops.program.attributes import (
    FLAG,
    MAX_CHANNELS,
    REWRITE,
    SCALE_AND_ZERO_POINT,
    Attribute,
    among,
    of_each_axis,
    optional,
    whole,
)
from ternary_ops.program.operator import BoundNode, Operand, Operator, Shape, Value, register
from ternary_ops.program.weight import Array


@register
class Input(Operator):
    """The floats that the program is called with: rank 2 [N, C], 3 [N, L, C], 4 [N, C, H, W]; of
    `size` H x W, or L, alone
    """

    name = "input"
    reads = "-"
    inputs = (0, 0)
    attrs = {
        "c": Attribute(whole(1, MAX_CHANNELS)),
        "rank": Attribute(among(2, 3, 4), 4),
        "size": Attribute(optional(of_each_axis(1, MAX_CHANNELS)), None),
    }

    def value(self, node: BoundNode) -> Value:
        """Floats."""
        size, rank = node.at["size"], node.at["rank"]
        if size is not None and len(size) != rank - 2:
            raise FormatError(need(f"{rank - 2} sizes of rank {rank}", len(size), REWRITE))
        return Value(node.at["rank"], node.at["c"], node.at["c"], None)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """That of the input array, which may have to be of one size."""
        shape, size = inputs[0], node.at["size"]
        if size is not None and shape[2:] != size:
            wanted = (
                f"an input of size {' x '.join(map(str, size))}, which this program is made for"
            )
            got = " x ".join(map(str, shape[2:]))
            do = "Resize it, or compile the network on an example of this size."
            raise UnsupportedShape(need(wanted, got, do))
        return shape

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """The input array itself."""
        array: Array = operands[0]
        return array


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


@register
class Quantize(Operator):
    """Floats rounded to uint8. `fine`: of an image, eleven bits in two codes (below)"""

    name = "quantize"
    attrs = {"y": Attribute(SCALE_AND_ZERO_POINT), "fine": Attribute(FLAG, False)}
    per_channel = per_pixel = True

    def value(self, node: BoundNode) -> Value:
        """Of the attributes' scale and zero point."""
        x, y, fine = node.inputs[0], node.at["y"], node.at["fine"]
        if x.y is not None:
            raise FormatError(need("floats for quantize", "uint8", REWRITE))
        if fine and (x.rank != 4 or not 4 <= y[1] <= 251):
            wanted = "eleven bits of an image, zero point in 4..251"
            raise FormatError(need(wanted, "others", REWRITE))
        return replace(x, y=y, fine=fine)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """Of eleven bits, the codes of four channels, then their second codes."""
        n, c, *image = inputs[0]
        return (n, 8 * quads(c), *image) if node.at["fine"] else inputs[0]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Rounded half to even."""
        rounded = reference.quantize_fine if node.at["fine"] else reference.quantize
        return rounded(operands[0], *node.at["y"])


@register
class Dequantize(Operator):
    """The floats that uint8 stands for"""

    name = "dequantize"
    per_channel = per_pixel = True

    def value(self, node: BoundNode) -> Value:
        """Floats."""
        if node.inputs[0].y is None:
            raise FormatError(need("uint8 for dequantize", "floats", REWRITE))
        return replace(node.inputs[0], y=None)

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """f32(q - zero point) * scale."""
        return reference.dequantize(*operands[0])

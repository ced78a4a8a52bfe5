# SPDX-License-Identifier: Apache-2.0
"""Images of another size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ternary_ops import reference
from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.program.attributes import (
    FLAG,
    REWRITE,
    ZOOM,
    Attribute,
    one_of,
    optional,
    pair,
)
from ternary_ops.program.operator import BoundNode, Operand, Operator, Shape, Value, plain, register
from ternary_ops.program.weight import Array


@register
class Resize(Operator):
    """PyTorch's interpolate, to `size`, by `zoom` or to the second input's size: one of these"""

    name = "resize"
    reads = "x, optional: a value whose image size is taken"
    inputs = (1, 2)
    attrs = {
        "mode": Attribute(one_of("nearest", "nearest-exact", "bilinear", "bicubic")),
        "align": Attribute(FLAG, False),
        "size": Attribute(optional(pair(1)), None),
        "zoom": Attribute(optional(ZOOM), None),
    }
    keeps_params = per_channel = True
    sized_by = (1,)

    def value(self, node: BoundNode) -> Value:
        """As its first input."""
        at, (x, *others) = node.at, node.inputs
        for value in (x, *others):
            if value.rank != 4:
                raise FormatError(need("rank 4 for resize", value.rank, REWRITE))
        if (at["size"] is not None) + (at["zoom"] is not None) + len(others) != 1:
            raise FormatError(
                need("one of size, zoom and a second input", "another number", REWRITE)
            )
        blends = at["mode"] in ("bilinear", "bicubic")
        if at["align"] and (not blends or at["zoom"] is not None):
            wanted = "bilinear or bicubic and a size beside align"
            raise FormatError(need(wanted, "something else", REWRITE))
        return x

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """The size comes from `size`, or `zoom`, or the second operand's image."""
        x, at = inputs[0], node.at
        if len(inputs) == 2:
            sizes = inputs[1][2:]
        elif at["size"] is not None:
            sizes = at["size"]
        else:
            sizes = tuple(math.floor(a * z) for a, z in zip(x[2:], at["zoom"], strict=True))
        if min(sizes) < 1:
            raise UnsupportedShape(
                need("a resized image of at least 1 x 1", sizes, "Use a larger.")
            )
        return *x[:2], *sizes

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Codes are blended as steps from the zero point and rounded half to even."""
        at = node.at
        height, width = self.shape(node, [plain(v).shape for v in operands])[2:]
        return reference.resize(operands[0], (height, width), at["mode"], at["align"], at["zoom"])

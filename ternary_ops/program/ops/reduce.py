# SPDX-License-Identifier: Apache-2.0
"""Sums, means and extremes along whole axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ternary_ops import reference
from ternary_ops.errors import FormatError, need
from ternary_ops.program.attributes import REWRITE, Attribute, distinct, one_of
from ternary_ops.program.operator import (
    BoundNode,
    ChannelPairs,
    Operand,
    Operator,
    Shape,
    Value,
    plain,
    register,
)
from ternary_ops.program.weight import Array
from ternary_ops.reference.reductions import REDUCTIONS


@register
class Reduce(Operator):
    """The sum, mean, maximum or minimum along `axes` (1: channels; 2: rows or tokens; 3: columns),
    which keep the size 1
    """

    name = "reduce"
    reads = "x, floats, or uint8 for max and min"
    attrs = {"fn": Attribute(one_of(*REDUCTIONS)), "axes": Attribute(distinct(1, 2, 3))}
    keeps_params = True
    float_functions = ("sum", "mean")

    def value(self, node: BoundNode) -> Value:
        """Of one channel where axis 1 is reduced."""
        x, axes = node.inputs[0], node.at["axes"]
        if max(axes) >= x.rank:
            raise FormatError(need(f"axes below {x.rank}", max(axes), REWRITE))
        return replace(x, channels=1, multiple=1) if 1 in axes else x

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """1 along the axes."""
        return tuple(1 if i in node.at["axes"] else size for i, size in enumerate(inputs[0]))

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs] | None:
        """Each channel stays one where axis 1 is not reduced."""
        same = np.arange(node.inputs[0].channels or 0)
        return None if 1 in node.at["axes"] else [(same, same)]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """In float64, rounded once; of codes the extreme code."""
        return reference.reduce(plain(operands[0]), node.at["fn"], node.at["axes"])

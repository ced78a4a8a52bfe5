# SPDX-License-Identifier: Apache-2.0
"""Borders: pixels or tokens cut off or put around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ternary_ops import reference
from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.program.attributes import (
    MAX_CHANNELS,
    MAX_EXTENT,
    REWRITE,
    Attribute,
    Check,
    number,
    of_each_axis,
    one_of,
    optional,
)
from ternary_ops.program.operator import (
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    need_rank,
    plain,
    register,
)
from ternary_ops.program.weight import Array


def _of_size(node: BoundNode, *names: str) -> None:
    """Raise FormatError unless these have a number for rows and columns, or one for tokens."""
    need_rank(node, 3, 4)
    axes = node.inputs[0].rank - 2
    for name in names:
        if node.at[name] is not None and len(node.at[name]) != axes:
            raise FormatError(need(f"{name} of {axes} axes", len(node.at[name]), REWRITE))


@register
class Crop(Operator):
    """Every `step`-th row and column, or token, less `begin` at the start and `end` at the end"""

    name = "crop"
    attrs = {
        "begin": Attribute(of_each_axis(0, MAX_CHANNELS)),
        "end": Attribute(of_each_axis(0, MAX_CHANNELS)),
        "step": Attribute(optional(of_each_axis(1, MAX_EXTENT)), None),
    }
    keeps_params = per_channel = True

    def value(self, node: BoundNode) -> Value:
        """As its input."""
        _of_size(node, "begin", "end", "step")
        return node.inputs[0]

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """Smaller."""
        n, c, *sizes = inputs[0]
        at = node.at
        steps = at["step"] or [1] * len(sizes)
        left = [
            -(-(size - begin - end) // step)
            for size, begin, end, step in zip(sizes, at["begin"], at["end"], steps, strict=True)
        ]
        if min(left) < 1:
            wanted = f"more than {list(at['begin'])} and {list(at['end'])} to cut off"
            raise UnsupportedShape(need(wanted, sizes, "Use a larger size."))
        return n, c, *left

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """A part of the array."""
        return reference.crop(plain(operands[0]), **node.at)


def _read_filling(where: str, value: Any) -> float | None:
    return None if value is None or value == -float("inf") else number(where, value)


_FILLING = Check("a number; none for minus infinity", _read_filling)


@register
class Pad(Operator):
    """Rows and columns, or tokens, put `before` and `after`: of one `value`, or the input's own,
    reflected at the border, the border repeated, or those from the other end
    """

    name = "pad"
    attrs = {
        "before": Attribute(of_each_axis(0, MAX_EXTENT)),
        "after": Attribute(of_each_axis(0, MAX_EXTENT)),
        "mode": Attribute(one_of("constant", "reflect", "replicate", "circular"), "constant"),
        "value": Attribute(_FILLING, 0.0),
    }
    keeps_params = per_channel = True

    def value(self, node: BoundNode) -> Value:
        """As its input."""
        _of_size(node, "before", "after")
        return node.inputs[0]

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """Larger; what is reflected or comes from the other end must be there."""
        n, c, *sizes = inputs[0]
        before, after, mode = (node.at[name] for name in ("before", "after", "mode"))
        spare = {"reflect": 1, "circular": 0}.get(mode)
        widest = [max(ends) for ends in zip(before, after, strict=True)]
        if spare is not None and any(
            w > size - spare for w, size in zip(widest, sizes, strict=True)
        ):
            wanted = f"at least {[w + spare for w in widest]} for mode {mode}"
            raise UnsupportedShape(need(wanted, sizes, "Use a larger size."))
        return n, c, *(size + b + a for size, b, a in zip(sizes, before, after, strict=True))

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Codes are padded with the code of the value."""
        return reference.pad(operands[0], **node.at)

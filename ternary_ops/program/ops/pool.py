# SPDX-License-Identifier: Apache-2.0
"""Maxima and means over windows of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ternary_ops import reference
from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.program.attributes import (
    FLAG,
    OUTPUT,
    REWRITE,
    Attribute,
    optional,
    pair,
    whole,
)
from ternary_ops.program.operator import (
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    need_rank,
    output_params,
    plain,
    register,
)
from ternary_ops.program.weight import Array
from ternary_ops.reference.arithmetic import pooled_size

MAX_WINDOW = (2**31 - 1) // 255  # pixels an int32 accumulator can average

_WINDOW = {
    "kernel": Attribute(pair(1)),
    "stride": Attribute(optional(pair(1)), None, like="kernel"),
    "padding": Attribute(pair(0), (0, 0)),
}


def _need_windows_inside(node: BoundNode) -> None:
    """As PyTorch: every window of a pool reaches into the image."""
    need_rank(node, 4)
    for k, p in zip(node.at["kernel"], node.at["padding"], strict=True):
        if 2 * p > k:
            raise FormatError(need(f"padding of at most half of {k}", p, REWRITE))


def _pooled(node: BoundNode, x: Shape) -> Shape:
    at = node.at
    dilation = at.get("dilation", (1, 1))
    steps = zip(x[2:], at["kernel"], at["stride"], at["padding"], dilation, strict=True)
    return *x[:2], *(pooled_size(*step, at["ceil"]) for step in steps)


def _need_small_window(pixels: int) -> None:
    if pixels > MAX_WINDOW:
        raise UnsupportedShape(
            need(f"at most {MAX_WINDOW} pixels in an average", pixels, "Use a smaller image.")
        )


@register
class MaxPool2d(Operator):
    """The largest number of each window; padding never wins"""

    name = "max_pool2d"
    attrs = {
        **_WINDOW,
        "dilation": Attribute(pair(1), (1, 1)),
        "ceil": Attribute(FLAG, False),
    }
    keeps_params = per_channel = True

    def value(self, node: BoundNode) -> Value:
        """As its input."""
        _need_windows_inside(node)
        return node.inputs[0]

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """One pixel a window."""
        return _pooled(node, inputs[0])

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Of codes or floats."""
        return reference.max_pool2d(plain(operands[0]), **node.at)


@register
class AvgPool2d(Operator):
    """The mean of each window, counted as PyTorch does"""

    name = "avg_pool2d"
    attrs = {
        **_WINDOW,
        "ceil": Attribute(FLAG, False),
        "include_pad": Attribute(FLAG, True),
        "divisor": Attribute(optional(whole(1, 2**31 - 1)), None),
        "y": OUTPUT,
    }
    per_channel = averages = True

    def value(self, node: BoundNode) -> Value:
        """Of the input's channels."""
        _need_windows_inside(node)
        x = node.inputs[0]
        return Value(4, x.channels, x.multiple, output_params(node))

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """One pixel a window."""
        pooled = _pooled(node, inputs[0])
        _need_small_window(math.prod(node.at["kernel"]))
        return pooled

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Exact sums, then one product."""
        return reference.avg_pool2d(operands[0], **node.at)


@register
class AdaptiveAvgPool2d(Operator):
    """The means of size[0] x size[1] parts of the image"""

    name = "adaptive_avg_pool2d"
    attrs = {"size": Attribute(pair(1)), "y": OUTPUT}
    per_channel = averages = True

    def value(self, node: BoundNode) -> Value:
        """Of the input's channels."""
        need_rank(node, 4)
        x = node.inputs[0]
        return Value(4, x.channels, x.multiple, output_params(node))

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """The size that was asked for."""
        x, size = inputs[0], node.at["size"]
        _need_small_window(math.prod(-(-a // b) + 1 for a, b in zip(x[2:], size, strict=True)))
        return *x[:2], *size

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Exact sums, then one product."""
        return reference.adaptive_avg_pool2d(operands[0], **node.at)


@register
class AdaptiveMaxPool2d(Operator):
    """The largest numbers of size[0] x size[1] parts of the image"""

    name = "adaptive_max_pool2d"
    attrs = {"size": Attribute(pair(1))}
    keeps_params = per_channel = True

    def value(self, node: BoundNode) -> Value:
        """As its input."""
        need_rank(node, 4)
        return node.inputs[0]

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """The size that was asked for."""
        return *inputs[0][:2], *node.at["size"]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Of codes or floats."""
        return reference.adaptive_max_pool2d(plain(operands[0]), node.at["size"])

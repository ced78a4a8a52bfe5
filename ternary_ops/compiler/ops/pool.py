# SPDX-License-Identifier: Apache-2.0
"""Pools and averages over an image."""

from __future__ import annotations

from ternary_ops.compiler.arrange import in_windows
from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call, pair
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.reduced import reduced
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops


def _max_pool(call: Call) -> Value:
    at = call.arguments()
    if at["return_indices"]:
        raise Unsupported("return_indices is not supported")
    attrs = {
        "kernel": pair(at["kernel_size"]),
        "stride": pair(at["stride"] or at["kernel_size"]),
        "padding": pair(at["padding"]),
        "dilation": pair(at["dilation"]),
        "ceil": at["ceil_mode"],
    }
    return call.image(lambda x: Step("max_pool2d", [x], attrs))


def _avg_pool(call: Call) -> Value:
    at = call.arguments()
    attrs = {
        "kernel": pair(at["kernel_size"]),
        "stride": pair(at["stride"] or at["kernel_size"]),
        "padding": pair(at["padding"]),
        "ceil": at["ceil_mode"],
        "include_pad": at["count_include_pad"],
        "divisor": at["divisor_override"],
    }
    return call.image(lambda x: Step("avg_pool2d", [x], attrs))


def _adaptive(op: str, fn: str) -> Row:
    """To a size, whatever that of the image; None in it leaves an axis as it is."""

    def make(call: Call) -> Value:
        at = call.arguments()
        if at.get("return_indices"):
            raise Unsupported("return_indices is not supported")
        size = at["output_size"]
        if isinstance(size, (tuple, list)) and None in size:
            if set(size) != {1, None}:
                raise Unsupported(f"to {size} is not supported")
            return reduced(call.value(), [2 + list(size).index(1)], fn, True)
        attrs = {"size": pair(size)}
        if attrs["size"] != (1, 1):
            return call.image(lambda x: Step(op, [x], attrs))
        if in_windows(call.value()):
            return reduced(call.value(), [2, 3], fn, True)
        x = call.laid(4)
        one = (*x.form[:2], (), ())  # of one pixel, whatever the size
        return Value(Step(op, [x.step], attrs), one, one)

    return Row(make)


def _to_one(call: Call) -> Value:
    """The mean of the last axis, [N, C, L] to [N, C, 1]."""
    if call.arguments()["output_size"] not in (1, (1,), [1]):
        raise Unsupported("an adaptive pool of one axis is supported to one number")
    return reduced(call.value(), [-1], "mean", True)


ROWS = {
    torch_ops.MAX_POOL2D: Row(_max_pool),
    torch_ops.AVG_POOL2D: Row(_avg_pool),
    torch_ops.ADAPTIVE_AVG_POOL2D: _adaptive("adaptive_avg_pool2d", "mean"),
    torch_ops.ADAPTIVE_MAX_POOL2D: _adaptive("adaptive_max_pool2d", "max"),
    torch_ops.ADAPTIVE_AVG_POOL1D: Row(_to_one),
}

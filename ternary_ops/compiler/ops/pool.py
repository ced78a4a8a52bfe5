# SPDX-License-Identifier: Apache-2.0
"""Pools and averages over an image."""

from __future__ import annotations

from collections.abc import Sequence

from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call, pair
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops


def _max_pool(call: Call) -> Step:
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
    return Step("max_pool2d", [call.input(4)], attrs)


def _avg_pool(call: Call) -> Step:
    at = call.arguments()
    attrs = {
        "kernel": pair(at["kernel_size"]),
        "stride": pair(at["stride"] or at["kernel_size"]),
        "padding": pair(at["padding"]),
        "ceil": at["ceil_mode"],
        "include_pad": at["count_include_pad"],
        "divisor": at["divisor_override"],
    }
    return Step("avg_pool2d", [call.input(4)], attrs)


def _adaptive(call: Call) -> Value | Step:
    size = pair(call.arguments()["output_size"])
    if size == (1, 1):
        return _mean_of_image(call)
    return Step("adaptive_avg_pool2d", [call.input(4)], {"size": size})


def _mean_of_image(call: Call) -> Value:
    """Of one pixel, whatever the size."""
    x = call.laid(4)
    one = (*x.form[:2], (), ())
    return Value(Step("adaptive_avg_pool2d", [x.step], {"size": (1, 1)}), one, one)


def _adaptive_max(call: Call) -> Step:
    at = call.arguments()
    if at["return_indices"]:
        raise Unsupported("return_indices is not supported")
    return Step("adaptive_max_pool2d", [call.input(4)], {"size": pair(at["output_size"])})


def _mean(call: Call) -> Value:
    at = call.arguments()
    dims = at["dim"] if isinstance(at["dim"], Sequence) else (at["dim"],)
    if at["dtype"] is not None or sorted(d % 4 for d in dims if isinstance(d, int)) != [2, 3]:
        raise Unsupported("a mean is supported over H and W together")
    mean = _mean_of_image(call)
    return mean if at["keepdim"] else mean.seen_as(mean.axes[:2])


ROWS = {
    torch_ops.MAX_POOL2D: Row(_max_pool),
    torch_ops.AVG_POOL2D: Row(_avg_pool),
    torch_ops.ADAPTIVE_AVG_POOL2D: Row(_adaptive),
    torch_ops.ADAPTIVE_MAX_POOL2D: Row(_adaptive_max),
    torch_ops.MEAN: Row(_mean, "mean over H and W"),
}

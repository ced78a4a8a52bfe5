# SPDX-License-Identifier: Apache-2.0
"""Convolutions and pools along one axis, [N, C, L]: those of an image of one row; convolutions
along two of three axes: those of as many images as the third is long.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ternary_ops.compiler.arrange import canonical
from ternary_ops.compiler.axes import Value, made_by
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.ops.conv_linear import convolution, over_windows
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.parts import dropped
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.nn.geometry import geometry_of


def _row(call: Call) -> Step:
    """The value as an image [N, C, 1, L]."""
    x = call.value()
    if len(x.axes) != 3:
        raise Unsupported("it is supported for a batch [N, C, L]")
    return canonical(x.seen_as((*x.axes[:2], (), x.axes[2]))).step


def _made(call: Call, step: Step) -> Value:
    """What a step makes of such an image, without the axis of its one row."""
    n, c, length = call.sizes
    return dropped(made_by(step, [n, c, (1,) * len(n), length], call.varied), 2)


def _conv(call: Call) -> Value:
    module = call.module
    if module is None:
        call.refuse()
    sizes = geometry_of(module)
    for name, other in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        if not isinstance(sizes[name], str):
            sizes[name] = (other, *sizes[name])
    twin = nn.Conv2d(**sizes, bias=module.bias is not None, device="meta")
    twin.weight, twin.bias = nn.Parameter(module.weight.detach().unsqueeze(2)), module.bias
    return _made(call, convolution(call, twin, _row(call)))


def _volume(call: Call) -> Value:
    """A Conv3d whose filters have the size 1 along an axis."""
    module, x = call.module, call.value()
    at = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    sizes = geometry_of(module)
    plain = [i for i in range(3) if all(sizes[name][i] == n for name, n in at.items())]
    if not plain or isinstance(module.padding, str) or len(x.axes) != 5:
        raise Unsupported("filters of the size 1 along one of three axes are supported")
    (axis, *_), axes = plain, [*x.axes]
    for name in at:
        sizes[name] = tuple(n for i, n in enumerate(sizes[name]) if i != axis)
    twin = nn.Conv2d(**sizes, bias=module.bias is not None, device="meta")
    twin.weight, twin.bias = nn.Parameter(module.weight.detach().squeeze(axis + 2)), module.bias
    images = axes.pop(axis + 2)
    made = [*call.sizes]
    made[0] = tuple(n * k for n, k in zip(made[0], made.pop(axis + 2), strict=True))
    y = over_windows(call, twin, x.seen_as(((*axes[0], *images), *axes[1:])), made)
    return y.seen_as((axes[0], *y.axes[1 : axis + 2], images, *y.axes[axis + 2 :]))


def _along(value: Any, other: int) -> tuple[int, int]:
    """An argument of a pool along the row; `other`: across it."""
    (along,) = (value,) if isinstance(value, int) else tuple(value)
    return other, int(along)


def _window(at: dict[str, Any]) -> dict[str, Any]:
    stride = at["kernel_size"] if at["stride"] in (None, ()) else at["stride"]
    return {
        "kernel": _along(at["kernel_size"], 1),
        "stride": _along(stride, 1),
        "padding": _along(at["padding"], 0),
        "ceil": at["ceil_mode"],
    }


def _max_pool(call: Call) -> Value:
    at = call.arguments()
    if at["return_indices"]:
        raise Unsupported("return_indices is not supported")
    attrs = {**_window(at), "dilation": _along(at["dilation"], 1)}
    return _made(call, Step("max_pool2d", [_row(call)], attrs))


def _avg_pool(call: Call) -> Value:
    at = call.arguments()
    attrs = {**_window(at), "include_pad": at["count_include_pad"]}
    return _made(call, Step("avg_pool2d", [_row(call)], attrs))


def _adaptive(call: Call) -> Value:
    size = _along(call.arguments()["output_size"], 1)
    return _made(call, Step("adaptive_avg_pool2d", [_row(call)], {"size": size}))


ROWS = {
    torch_ops.CONV1D: Row(_conv),
    torch_ops.CONV3D: Row(_volume, "Conv3d along two axes"),
    torch_ops.MAX_POOL1D: Row(_max_pool),
    torch_ops.AVG_POOL1D: Row(_avg_pool),
    torch_ops.ADAPTIVE_AVG_POOL1D: Row(_adaptive),
}

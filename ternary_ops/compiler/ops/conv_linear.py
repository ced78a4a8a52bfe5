# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ternary_ops.compiler.arrange import canonical, channels_at
from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call, shape_of
from ternary_ops.compiler.ops.pad import padded
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import (
    Layer,
    padding_of,
    read_layer,
    read_transposed,
)
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.errors import UnsupportedModel, first_line
from ternary_ops.graph import torch_ops
from ternary_ops.nn.geometry import edges_at, edges_of


def _read(call: Call, module: nn.Module | None) -> Layer:
    """A layer of torch.nn or ternary_ops.nn; one that is called twice is read once."""
    if module is None:
        call.refuse()
    if call.name not in call.layers:
        try:
            call.layers[call.name] = read_layer(call.name, module)
        except UnsupportedModel as error:
            raise Unsupported(first_line(error)) from error
    return call.layers[call.name]


def _convolution(call: Call) -> Step:
    """Over an image."""
    return convolution(call, call.module, call.input(4))


def convolution(call: Call, module: Any, x: Step) -> Step:
    """A convolution of an image, with the padding that a program has as a step of its own."""
    layer = _read(call, module)
    attrs, by_size = layer.attrs, edges_of(module) == "same"
    if by_size and call.any_size:
        raise Unsupported("its padding depends on the size of the image")
    if by_size or module.padding_mode != "zeros":
        height, width = (shape_of(call.source) or ())[-2:]
        edges = edges_at(module, height, width)
        if module.padding_mode == "zeros":
            attrs = {**attrs, **padding_of(edges)}
        else:
            x = padded(x, edges, module.padding_mode)
    return Step("conv2d", [x], attrs, layer)


def _linear(call: Call) -> Value:
    """Over the last axis; of an image in which that lies as channels, a convolution."""
    layer, x = _read(call, call.module), call.value()
    rows = len(x.axes) == 2 and x.axes[0] == x.form[0]
    x = canonical(x) if rows else channels_at(x, -1)
    op = "conv2d" if len(x.form) == 4 else "linear"
    step = Step(op, [x.step], {}, layer)
    return x.with_channels(len(x.axes) - 1, layer.weight.shape[0], step)


def _transposed(call: Call) -> Step:
    """A convolution, and a pixel shuffle behind it."""
    if call.module is None:
        call.refuse()
    x = call.input(4)
    if len(call.node.args) > 1 or call.node.kwargs:
        raise Unsupported("output_size is not supported; set output_padding")
    layer, shuffled = read_transposed(call.name, call.module)
    return Step("pixel_shuffle", [Step("conv2d", [x], layer.attrs, layer)], shuffled)


ROWS = {
    torch_ops.CONV2D: Row(_convolution),
    torch_ops.CONV_TRANSPOSE2D: Row(_transposed),
    torch_ops.LINEAR: Row(
        _linear,
        "Linear (torch.nn's, tops.nn's, packed; also as functions of parameters and as products "
        "x @ weight)",
    ),
}

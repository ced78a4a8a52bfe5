# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers."""

from __future__ import annotations

from torch import nn

from ternary_ops.compiler.call import Call, Unsupported
from ternary_ops.compiler.ops.pad import padded
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import read_layer, read_transposed
from ternary_ops.compiler.step import Step
from ternary_ops.errors import UnsupportedModel, first_line
from ternary_ops.graph import torch_ops
from ternary_ops.nn.geometry import geometry_of


def _layer(call: Call) -> Step:
    """A layer of torch.nn or ternary_ops.nn; one that is called twice is read once."""
    module = call.module
    if module is None:
        call.refuse()
    convolves = isinstance(getattr(module, "kernel_size", None), tuple)
    x = call.input(4) if convolves else call.input(2, 3)
    if call.name not in call.layers:
        try:
            call.layers[call.name] = read_layer(call.name, module)
        except UnsupportedModel as error:
            raise Unsupported(first_line(error)) from error
    layer = call.layers[call.name]
    if convolves and module.padding_mode != "zeros":
        twin = nn.Conv2d(**geometry_of(module), device="meta")
        x = padded(x, twin._reversed_padding_repeated_twice, module.padding_mode)
    return Step(layer.op, [x], layer.attrs, layer)


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
    torch_ops.CONV2D: Row(_layer),
    torch_ops.CONV_TRANSPOSE2D: Row(_transposed),
    torch_ops.LINEAR: Row(
        _layer,
        "Linear (torch.nn's, tops.nn's, packed; also as functions of parameters and as products "
        "x @ weight)",
    ),
}

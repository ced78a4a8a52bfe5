# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ternary_ops.compiler.arrange import (
    beside_channels,
    canonical,
    channels_at,
    in_windows,
    with_windows,
)
from ternary_ops.compiler.axes import RANKS, Sizes, Value
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


def _convolution(call: Call) -> Value | Step:
    x = call.value()
    if call.module is not None and len(x.axes) == RANKS[-1] and in_windows(x):
        return over_windows(call, call.module, x, call.sizes)
    return convolution(call, call.module, call.input(4))


def over_windows(call: Call, module: Any, x: Value, sizes: Sequence[Sizes]) -> Value:
    """A convolution of windows, as one group of channels each, or, of one pixel, as they lie; of
    these sizes.
    """
    layer = _read(call, module)
    if _of_one_pixel(layer):
        x = channels_at(x, 1, RANKS[-1:])
        step = Step("conv2d", [x.step], layer.attrs, layer)
        return x.with_channels(1, layer.weight.shape[0], step)
    x = beside_channels(x)
    windows = x.length(x.form[1])[0] // x.sizes[1][0]
    return with_windows(x, convolution(call, module, x.step, windows), sizes)


def _of_one_pixel(layer: Layer) -> bool:
    """True for filters of one pixel at every pixel."""
    at = layer.attrs
    ends = *at["padding"], *at["more_padding"]
    return layer.weight.shape[1:3] == (1, 1) and set(at["stride"]) == {1} and not any(ends)


def convolution(call: Call, module: Any, x: Step, windows: int = 1) -> Step:
    """A convolution of an image, with the padding that a program has as a step of its own, or of
    windows whose channels stand one after the other.
    """
    layer = _read(call, module)
    by_size = edges_of(module) == "same"
    if by_size and call.any_size:
        raise Unsupported("its padding depends on the size of the image")
    if by_size or module.padding_mode != "zeros":
        height, width = (shape_of(call.source) or ())[-2:]
        edges = edges_at(module, height, width)
        if module.padding_mode == "zeros":
            layer = replace(layer, attrs={**layer.attrs, **padding_of(edges)})
        else:
            x = padded(x, edges, module.padding_mode)
    if windows > 1:
        layer = _of_each(layer, windows)
    return Step("conv2d", [x], layer.attrs, layer)


def _of_each(layer: Layer, windows: int) -> Layer:
    """A layer over the channels of every window."""
    weight = layer.weight
    scale, bias = (
        None if vector is None else np.tile(vector, windows)
        for vector in (weight.scale, weight.bias)
    )
    filters = np.tile(weight.array, (windows, 1, 1, 1))
    attrs = {**layer.attrs, "groups": windows * layer.attrs["groups"]}
    made = replace(weight, values=filters, scale=scale, bias=bias)
    return replace(layer, weight=made, attrs=attrs)


def _linear(call: Call) -> Value:
    """Over the last axis; of an image in which that lies as channels, a convolution."""
    return linear(call.value(), _read(call, call.module))


def linear(x: Value, layer: Layer) -> Value:
    """A layer over the last axis."""
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

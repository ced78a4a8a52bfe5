# SPDX-License-Identifier: Apache-2.0
"""Unfold and Fold: every window of an image as a column, and the sum of overlapping ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ternary_ops.compiler.arrange import canonical
from ternary_ops.compiler.axes import Value, made_by
from ternary_ops.compiler.call import Call, pair
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import Layer, read_transposed
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.program.weight import Weight

_WINDOW = ("kernel_size", "dilation", "padding", "stride")


def _filters(channels: int, kernel: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int8]]:
    """For each channel and place of a window the filter that copies it, [C * R * S, R, S, 1]."""
    places = kernel[0] * kernel[1]
    one = np.eye(places, dtype=np.int8).reshape(places, *kernel, 1)
    return np.tile(one, (channels, 1, 1, 1))


def _unfold(call: Call) -> Value:
    """A convolution of such filters: [N, C, H, W] to [N, C * R * S, windows]."""
    given = call.arguments()
    at = {name: pair(given[name]) for name in _WINDOW}
    x = call.laid(4)
    channels = x.sizes[1][0]
    attrs = {
        "stride": at["stride"],
        "padding": at["padding"],
        "more_padding": (0, 0),
        "dilation": at["dilation"],
        "groups": channels,
    }
    filters = _filters(channels, at["kernel_size"])
    weight = Weight("windows", "ternary", filters, np.ones(len(filters), np.float32), None)
    step = Step("conv2d", [x.step], attrs, Layer("conv2d", weight, attrs, follows=True))
    rows, columns = (
        tuple(_count(size, *(at[name][i] for name in _WINDOW)) for size in x.sizes[2 + i])
        for i in (0, 1)
    )
    made = made_by(step, [*call.sizes[:2], rows, columns], call.varied)
    return made.reshaped(call.sizes)


def _count(size: int, kernel: int, dilation: int, padding: int, stride: int) -> int:
    """Windows along an axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _fold(call: Call) -> Value:
    """A transposed convolution of such filters: [N, C * R * S, windows] to [N, C, H, W]."""
    given = call.arguments(free=("output_size",))
    at, x = {name: pair(given[name]) for name in _WINDOW}, call.value()
    if len(x.axes) != 3:
        raise Unsupported("a Fold is supported for a batch of columns")
    n, channels, *image = call.sizes
    counts = [
        tuple(_count(size, *(at[name][i] for name in _WINDOW)) for size in image[i]) for i in (0, 1)
    ]
    more = [
        {
            size - ((count - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, count in zip(sizes, along, strict=True)
        }
        for sizes, along, k, d, p, s in zip(image, counts, *at.values(), strict=True)
    ]
    if any(len(rest) > 1 for rest in more):
        raise Unsupported("how its windows lie depends on the size of the image")
    filters = _filters(channels[0], at["kernel_size"])
    twin = nn.ConvTranspose2d(
        len(filters),
        channels[0],
        at["kernel_size"],
        at["stride"],
        at["padding"],
        tuple(rest.pop() for rest in more),
        groups=channels[0],
        bias=False,
        dilation=at["dilation"],
        device="meta",
    )
    twin.weight = nn.Parameter(torch.from_numpy(filters).permute(0, 3, 1, 2).float())
    layer, shuffled = read_transposed("windows", twin)
    columns = canonical(x.reshaped([*x.sizes[:2], *counts]))
    step = Step("conv2d", [columns.step], layer.attrs, layer)
    made = Step("pixel_shuffle", [step], shuffled)
    return made_by(made, [n, channels, *image], call.varied)


ROWS = {torch_ops.UNFOLD_IMAGE: Row(_unfold), torch_ops.FOLD: Row(_fold)}

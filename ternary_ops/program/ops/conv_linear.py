# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers: what multiplies a value by filters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from ternary_ops import _native, reference
from ternary_ops.errors import FormatError, need
from ternary_ops.layout import codes
from ternary_ops.program.attributes import (
    CLAMP,
    FLAG,
    MAX_CHANNELS,
    MAX_EXTENT,
    OUTPUT,
    REWRITE,
    WEIGHT,
    Attribute,
    pair,
    whole,
)
from ternary_ops.program.operator import (
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    bounds_and_params,
    like_all,
    need_rank,
    need_same,
    output_params,
    register,
)
from ternary_ops.program.weight import Array, Params, Weight, check_sums
from ternary_ops.reference.arithmetic import conv_size

# Largest int8 filter, with its eighths, whose sums cannot overflow int32.
_SURE_FINE_SIZE = (2**31 - 1) // (255 * (127 + 16))


class _Layer(Operator):
    is_layer = True

    def value(self, node: BoundNode) -> Value:
        """Of as many channels as there are filters."""
        x, w = node.inputs[0], node.weight
        groups, (filters, _, _, width) = node.at.get("groups", 1), w.shape
        self._need_operands(node, w)
        width *= groups
        if x.channels != width and (x.channels is not None or width % x.multiple):
            raise FormatError(need(f"{width} input channels", x.channels or x.multiple, REWRITE))
        if x.fine and (groups > 1 or w.kind != "int8"):
            wanted = "int8 filters over all channels for eleven bits"
            raise FormatError(need(wanted, w.kind, REWRITE))
        if x.fine and w.array[0].size > _SURE_FINE_SIZE:
            check_sums(f"weight {w.name!r} of eleven bits", codes.fine_filters(w.array), 127)
        if x.y is not None and w.kind == "float":
            raise FormatError(need("float input for float weights", "uint8", REWRITE))
        if not np.isfinite(w.effective_scale(x.y)).all():
            raise FormatError(need("a finite scale * input scale", "an overflow", REWRITE))
        made = Value(x.rank, filters, filters, output_params(node))
        for other in node.inputs[1:]:
            if (other.rank, other.channels) != (x.rank, filters):
                wanted = "a residual or gate of the output's channels"
                raise FormatError(need(wanted, "another", REWRITE))
            if x.y is None and other.y is not None:
                wanted = "a residual or gate of floats beside sums of floats"
                raise FormatError(need(wanted, "uint8", REWRITE))
        return made

    @abstractmethod
    def _need_operands(self, node: BoundNode, w: Weight) -> None:
        """Check rank, filters and the number of inputs; raises FormatError."""

    def macs(self, node: BoundNode, result: Shape) -> int:
        """Every filter at every place."""
        return math.prod(result) * math.prod(node.weight.shape[1:])

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Exact sums of integers, float64 sums of floats; then one float32 step at a time."""
        w = node.weight
        x, *others = operands
        gate = others.pop(0) if node.at.get("gate") else None
        residual = others[0] if others else None
        fine = node.inputs[0].fine
        filters = codes.channels_first(codes.fine_filters(w.array) if fine else w.array)
        scale = w.effective_scale((x[1], x[2]) if isinstance(x, tuple) else None)
        ends = {"slope": w.slope, "gate": gate, **bounds_and_params(node)}
        acc = self._sums(node, x, filters)
        return reference.epilogue(acc, scale, w.bias, residual, **ends)

    @abstractmethod
    def _sums(self, node: BoundNode, x: Operand, filters: Array) -> Array:
        """Products of x with filters [O, I, R, S], added up."""

    def native(self, node: BoundNode) -> dict[str, Any]:
        """The filters as the kernels read them."""
        w, x = node.weight, node.inputs[0]
        kind, values, scale = self._stored(w, x.y)
        shape = w.shape
        if x.fine:
            values = codes.fine_filters(w.array)
            shape = (*shape[:3], values.shape[3])
        slope = w.slope
        if slope is not None:
            slope = np.ascontiguousarray(np.broadcast_to(slope, shape[0]))
        vectors = {"scale": scale, "bias": w.bias, "slope": slope}
        return {"kind": kind, "weights": values, "shape": shape, **vectors}

    def _stored(self, w: Weight, x: Params | None) -> tuple[str, Array, Array]:
        """Kind, values and scale."""
        scale = w.effective_scale(x)
        if isinstance(w.values, codes.TernaryCodes):
            return w.kind, w.values.codes, scale
        if w.kind == "ternary":
            return w.kind, _native.core().pack_codes(w.values), scale
        if w.kind == "int8":
            return w.kind, codes.pad_int8(w.array), scale
        return w.kind, w.array, scale


@register
class Conv2d(_Layer):
    """A convolution with filters [O, R, S, I]; at the bottom and right `more_padding` rows and
    columns more than at the top and left; times a gate after a sigmoid, plus a residual
    """

    name = "conv2d"
    reads = "x, gate if `gate` says so, optional residual"
    inputs = (1, 3)
    attrs = {
        "w": WEIGHT,
        "stride": Attribute(pair(1), (1, 1)),
        "padding": Attribute(pair(0), (0, 0)),
        "more_padding": Attribute(pair(0), (0, 0)),
        "dilation": Attribute(pair(1), (1, 1)),
        "groups": Attribute(whole(1, MAX_CHANNELS), 1),
        "gate": Attribute(FLAG, False),
        "clamp": CLAMP,
        "y": OUTPUT,
    }
    reads_fine = True

    def _need_operands(self, node: BoundNode, w: Weight) -> None:
        need_rank(node, 4)
        others, gated, groups = node.inputs[1:], node.at["gate"], node.at["groups"]
        if w.slope is not None and node.at["clamp"] != (None, None):
            raise FormatError(need("slopes in a convolution without bounds", "bounds", REWRITE))
        if len(others) > 1 + gated or (gated and (not others or w.slope is not None)):
            wanted = "a gate, which slopes exclude, and at most one residual"
            raise FormatError(need(wanted, f"{len(others)} values", REWRITE))
        o, r, s, _ = w.shape
        if max(r, s) > MAX_EXTENT or o % groups:
            wanted = f"filters that split into {groups} groups"
            raise FormatError(need(wanted, list(w.shape), REWRITE))

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """One pixel for each place of the filters."""
        x, at, (o, r, s, _) = inputs[0], node.at, node.weight.shape
        sizes = map(sum, zip(x[2:], at["more_padding"], strict=True))
        steps = zip(sizes, (r, s), at["stride"], at["padding"], at["dilation"], strict=True)
        return like_all((x[0], o, *(conv_size(*step) for step in steps)), inputs[1:])

    def _sums(self, node: BoundNode, x: Operand, filters: Array) -> Array:
        at = node.at
        window = at["stride"], at["padding"], at["dilation"], at["groups"]
        if any(at["more_padding"]):
            x = _padded(x, at["more_padding"])
        if isinstance(x, tuple):
            return reference.conv2d_acc(x[0], x[2], filters, *window)
        return reference.conv2d(x, filters, None, None, *window)

    def _stored(self, w: Weight, x: Params | None) -> tuple[str, Array, Array]:
        """Integer weights that meet floats become floats: with no integers to multiply, only the
        file gains from the codes.
        """
        if x is None and w.scale is not None:
            return "float", w.array * w.scale[:, None, None, None], np.ones_like(w.scale)
        return super()._stored(w, x)


def _padded(x: Operand, more: tuple[int, int]) -> Operand:
    """An image with rows below and columns to the right of zeros, or of the zero point."""
    ends = (0, 0), (0, 0), (0, more[0]), (0, more[1])
    if isinstance(x, tuple):
        return np.pad(x[0], ends, constant_values=x[2]), *x[1:]
    return np.pad(x, ends)


@register
class Linear(_Layer):
    """A linear layer over the channels of rows or tokens, with a weight [O, 1, 1, I]; plus a
    residual

    Integer weights that meet floats stay integers: fewer bytes are what makes these layers fast.
    """

    name = "linear"
    reads = "x, optional residual"
    inputs = (1, 2)
    attrs = {"w": WEIGHT, "clamp": CLAMP, "y": OUTPUT}

    def _need_operands(self, node: BoundNode, w: Weight) -> None:
        need_rank(node, 2, 3)
        if w.slope is not None:
            raise FormatError(need("slopes in a convolution", self.name, REWRITE))
        if w.shape[1:3] != (1, 1):
            raise FormatError(need("linear weights [O, 1, 1, I]", list(w.shape), REWRITE))

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """One row of outputs for each row or token."""
        n, features, *tokens = inputs[0]
        o, _, _, k = node.weight.shape
        need_same("features", (k,), (features,))
        return like_all((n, o, *tokens), inputs[1:])

    def _sums(self, node: BoundNode, x: Operand, filters: Array) -> Array:
        rows = filters[:, :, 0, 0]
        if isinstance(x, tuple):
            acc: Array = reference.linear_acc(np.moveaxis(x[0], 1, -1), x[2], rows)
        else:
            acc = reference.linear(np.moveaxis(x, 1, -1), rows)
        return np.moveaxis(acc, -1, 1)

# SPDX-License-Identifier: Apache-2.0
"""Normalizations: floats divided by their own sum or deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ternary_ops import reference
from ternary_ops.errors import FormatError, need
from ternary_ops.program.attributes import (
    MAX_CHANNELS,
    OUTPUT,
    POSITIVE,
    REWRITE,
    WEIGHT,
    Attribute,
    whole,
)
from ternary_ops.program.operator import (
    BoundNode,
    Operand,
    Operator,
    Shape,
    Value,
    need_parts,
    need_rank,
    need_same,
    register,
)
from ternary_ops.program.weight import Array


def _need_factor_a_channel(node: BoundNode, width: int | None) -> None:
    """Raise FormatError unless the weight is floats [width, 1, 1, 1]."""
    x, w = node.inputs[0], node.weight
    if w.kind != "float" or w.shape != (width, 1, 1, 1) or w.slope is not None:
        wanted = f"float weights [{x.channels or f'{x.multiple} n'}, 1, 1, 1]"
        raise FormatError(need(wanted, list(w.shape), REWRITE))


def _factor_and_offset(node: BoundNode) -> dict[str, Any]:
    """The weight as the engine takes it."""
    w = node.weight
    bias = np.zeros(w.shape[0], np.float32) if w.bias is None else w.bias
    return {"weight": w.array.ravel(), "bias": bias}


@register
class Softmax(Operator):
    """exp(x) over its sum over the channels of each of `groups` groups, for each pixel"""

    name = "softmax"
    reads = "x, floats"
    attrs = {"groups": Attribute(whole(1, MAX_CHANNELS), 1)}
    floats_only = over_channels = per_pixel = True

    def value(self, node: BoundNode) -> Value:
        """As its input."""
        x, groups = node.inputs[0], node.at["groups"]
        if groups > 1:
            need_parts(x.channels, groups)
        return x

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """In float64, rounded once."""
        return reference.softmax(operands[0], node.at["groups"]).astype(np.float32)


@register
class LayerNorm(Operator):
    """(x - mean) / sqrt(variance + `eps`) over the channels, for each pixel, times a weight
    [C, 1, 1, 1] plus its bias
    """

    name = "layer_norm"
    reads = "x, floats"
    attrs = {"w": WEIGHT, "eps": Attribute(POSITIVE), "y": OUTPUT}
    floats_only = over_channels = per_pixel = True

    def value(self, node: BoundNode) -> Value:
        """Of as many channels as there are weights."""
        x, size = node.inputs[0], node.weight.shape[0]
        _need_factor_a_channel(
            node, size if x.channels is None and size % x.multiple == 0 else x.channels
        )
        return replace(x, channels=size, multiple=size, y=node.at["y"])

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """That of its input."""
        need_same("channels", node.weight.shape[:1], inputs[0][1:2])
        return inputs[0]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """In float64, rounded once; codes by the float32 steps of the engine."""
        w, eps, y = node.weight, node.at["eps"], node.at["y"]
        given = operands[0], w.array.ravel(), w.bias, eps
        if y is not None:
            return reference.layer_norm_codes(*given, y)
        return reference.layer_norm(*given).astype(np.float32)

    def native(self, node: BoundNode) -> dict[str, Any]:
        """Weight and bias."""
        return _factor_and_offset(node)


@register
class GroupNorm(Operator):
    """(x - mean) / sqrt(variance + `eps`) over each of `groups` groups of channels and all pixels,
    times a weight [C, 1, 1, 1] plus its bias
    """

    name = "group_norm"
    reads = "x, floats"
    attrs = {
        "w": WEIGHT,
        "groups": Attribute(whole(1, MAX_CHANNELS)),
        "eps": Attribute(POSITIVE),
    }
    floats_only = over_channels = True

    def value(self, node: BoundNode) -> Value:
        """As its input."""
        need_rank(node, 4)
        x, groups = node.inputs[0], node.at["groups"]
        _need_factor_a_channel(node, x.channels)
        need_parts(x.channels, groups)
        return x

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """In float64, rounded once."""
        w, x = node.weight, np.asarray(operands[0], np.float64)
        groups = x.reshape(len(x), node.at["groups"], -1)
        centered = groups - groups.mean(axis=2, keepdims=True)
        variance = (centered**2).mean(axis=2, keepdims=True)
        out: Array = (centered / np.sqrt(variance + node.at["eps"])).reshape(x.shape)
        out = out * w.array.astype(np.float64).reshape(-1, 1, 1)
        if w.bias is not None:
            out = out + w.bias.astype(np.float64).reshape(-1, 1, 1)
        return out.astype(np.float32)

    def native(self, node: BoundNode) -> dict[str, Any]:
        """Weight and bias."""
        return _factor_and_offset(node)

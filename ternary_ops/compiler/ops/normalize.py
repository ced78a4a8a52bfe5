# SPDX-License-Identifier: Apache-2.0
"""Normalizations, and softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary_ops.compiler.arrange import canonical, channels_at, placed
from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.constants import constant_value
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import Layer, read_batchnorm, read_norm
from ternary_ops.compiler.reduced import activation, combined, difference, logsumexp, reduced
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import is_batchnorm


def _made(x: Value, layer: Layer) -> Value:
    return x.of(Step(layer.op, [x.step], layer.attrs, layer))


def _batchnorm(call: Call) -> Value:
    """One that did not fold, a depthwise convolution."""
    if not is_batchnorm(call.node):
        call.refuse()
    return _made(channels_at(call.value(), 1, (4,)), read_batchnorm(call.name, call.module))


def _layer_norm(call: Call) -> Value:
    """Over the last axis."""
    module = call.module
    if module is None:
        at = call.arguments(free=("weight", "bias"))
        if at["weight"] is not None or at["bias"] is not None:
            call.refuse()
        module = nn.LayerNorm(at["normalized_shape"], at["eps"], elementwise_affine=False)
    shape = tuple(module.normalized_shape)
    if len(shape) != 1:
        raise Unsupported(f"a LayerNorm is supported over one axis, this takes {shape}")
    x = call.value()
    rows = len(x.axes) == 2 and x.axes[0] == x.form[0]
    x = canonical(x) if rows else channels_at(x, -1)
    return _made(x, read_norm(call.name, module))


def _group_norm(call: Call) -> Value:
    """Over groups of channels and all pixels."""
    if call.module is None:
        call.refuse()
    x = channels_at(call.value(), 1, (4,))
    if x.axes[0] != x.form[0]:
        raise Unsupported("it normalizes a part of an image by itself")
    return _made(x, read_norm(call.name, call.module))


def _rms_norm(call: Call) -> Value:
    """x over the root of the mean of squares along the last axis, times a weight."""
    at, x = call.arguments(free=("weight",)), call.value()
    shape, weight = tuple(at["normalized_shape"]), at["weight"]
    if len(shape) != 1:
        raise Unsupported(f"an RMSNorm is supported over one axis, this takes {shape}")
    eps = torch.finfo(torch.float32).eps if at["eps"] is None else at["eps"]
    power = reduced(activation(x, "square"), [-1], "mean", True)
    made = combined("mul", x, activation(activation(power, "affine", 1.0, eps), "rsqrt"))
    if weight is None:
        return made
    if isinstance(weight, Tensor):
        return combined("mul", made, constant_value(f"{call.name}.weight", weight, x))
    return combined("mul", made, call.value(weight))


def _softmax(call: Call) -> Value:
    return softmax(call.value(), _axis(call))


def _axis(call: Call) -> int:
    dim = call.arguments()["dim"]
    if not isinstance(dim, int):
        raise Unsupported("a softmax is supported over one axis")
    return dim


def softmax(x: Value, axis: int) -> Value:
    """Over one axis: the channels, or those of each group."""
    axis %= len(x.axes)
    wanted, channels = x.axes[axis], x.form[1]
    outer = tuple(atom for atom in channels if atom not in wanted)
    if not wanted or not set(wanted) <= set(channels):
        x = channels_at(x, axis)
        return x.of(Step("softmax", [x.step]))
    x = placed(x, (x.form[0], (*outer, *wanted), *x.form[2:]))
    attrs = {"groups": x.length(outer)[0]} if outer else {}
    fixed = not all(atom.known for atom in outer)
    return x.of(Step("softmax", [x.step], attrs, fixed=fixed))


def _softmax2d(call: Call) -> Value:
    return softmax(call.value(), -3)


def _log_softmax(call: Call) -> Value:
    """x less the logarithm of the sum of exponentials."""
    x, axis = call.value(), _axis(call)
    return difference(x, logsumexp(x, [axis % len(x.axes)], True))


ROWS = {
    torch_ops.BATCH_NORM: Row(_batchnorm),
    torch_ops.LAYER_NORM: Row(_layer_norm),
    torch_ops.GROUP_NORM: Row(_group_norm),
    torch_ops.RMS_NORM: Row(_rms_norm),
    torch_ops.SOFTMAX: Row(_softmax),
    torch_ops.SOFTMAX2D: Row(_softmax2d),
    torch_ops.LOG_SOFTMAX: Row(_log_softmax),
}

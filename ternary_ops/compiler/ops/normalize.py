# SPDX-License-Identifier: Apache-2.0
"""Normalizations, and softmax."""

from __future__ import annotations

from ternary_ops.compiler.call import Call, Unsupported, channel_axis, shape_of
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import read_batchnorm, read_norm
from ternary_ops.compiler.step import Step
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import is_batchnorm


def _batchnorm(call: Call) -> Step:
    """One that did not fold, a depthwise convolution."""
    if not is_batchnorm(call.node):
        call.refuse()
    x, layer = call.input(4), read_batchnorm(call.name, call.module)
    return Step(layer.op, [x], layer.attrs, layer)


def _layer_norm(call: Call) -> Step:
    """Over the K of [N, K] or the C of [N, L, C]."""
    if call.module is None:
        call.refuse()
    x = call.input(2, 3)
    if len(call.module.normalized_shape) != 1:
        raise Unsupported("a LayerNorm is supported over channels")
    layer = read_norm(call.name, call.module)
    return Step(layer.op, [x], layer.attrs, layer)


def _group_norm(call: Call) -> Step:
    """Over groups of channels and all pixels."""
    if call.module is None:
        call.refuse()
    x, layer = call.input(4), read_norm(call.name, call.module)
    return Step(layer.op, [x], layer.attrs, layer)


def _softmax(call: Call) -> Step:
    """Over channels."""
    dim = call.arguments()["dim"]
    rank = len(shape_of(call.source) or ())
    if rank not in (2, 3, 4) or dim is None or dim % rank != channel_axis(rank):
        raise Unsupported("a softmax is supported over channels")
    return Step("softmax", [call.input()])


ROWS = {
    torch_ops.BATCH_NORM: Row(_batchnorm),
    torch_ops.LAYER_NORM: Row(_layer_norm),
    torch_ops.GROUP_NORM: Row(_group_norm),
    torch_ops.SOFTMAX: Row(_softmax),
}

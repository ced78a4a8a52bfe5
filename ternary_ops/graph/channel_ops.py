# SPDX-License-Identifier: Apache-2.0
"""Kinds of operators of a traced network; `channels` says what each kind ties."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

import ternary_ops.nn as tnn
from ternary_ops.graph import torch_ops as ops
from ternary_ops.graph.nodes import (
    arguments_of,
    clamp_bounds,
    is_add,
    is_batchnorm,
    is_pass,
    is_size,
    is_slope,
    layer_class,
    module_of,
    operator_of,
    two,
)
from ternary_ops.nn.geometry import PaddedConv2d

_MORE_LAYERS = (nn.Conv1d, nn.ConvTranspose2d)  # whose channels are not scaled
_LAYERS = (nn.Conv2d, nn.Linear, PaddedConv2d, tnn.TernaryConv2d, tnn.TernaryLinear)
_NORMS = (nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
_KINDS = {
    # Of each number alone.
    "pointwise": (
        ops.RELU, ops.RELU6, ops.HARDTANH, ops.CLAMP, ops.FAKE_QUANTIZE, ops.PRELU, ops.LEAKY_RELU,
        ops.HARDSWISH, ops.HARDSIGMOID, ops.SILU, ops.SIGMOID, ops.TANH, ops.GELU, ops.ELU,
        ops.SOFTPLUS, ops.MISH, ops.CELU, ops.SELU, ops.RRELU, ops.LOGSIGMOID, ops.SOFTSIGN,
        ops.TANHSHRINK, ops.SOFTSHRINK, ops.HARDSHRINK, ops.THRESHOLD, ops.EXP, ops.LOG, ops.ABS,
        ops.SQUARE, ops.SQRT, ops.RSQRT, ops.RECIPROCAL, ops.POW, ops.ERF, ops.SIN, ops.COS,
        ops.ADD, ops.SUB, ops.MUL, ops.DIV, ops.NEG, ops.CONTIGUOUS, ops.IDENTITY, ops.DROPOUT,
        ops.MAXIMUM, ops.MINIMUM, ops.ADDCMUL,
    ),
    # Of each channel alone over windows of an image, and f(a * x) = a * f(x) for a > 0.
    "window": (
        ops.MAX_POOL2D, ops.AVG_POOL2D, ops.ADAPTIVE_AVG_POOL2D, ops.ADAPTIVE_MAX_POOL2D,
        ops.INTERPOLATE, ops.MAX_POOL1D, ops.AVG_POOL1D, ops.ADAPTIVE_AVG_POOL1D,
    ),
    # Around images: zeros, or what is no multiple of the channel.
    "pad": (ops.PAD,),
    # Values go elsewhere, unchanged.
    "move": (
        ops.CONCAT, ops.STACK, ops.CHUNK, ops.SPLIT, ops.TENSOR_SPLIT, ops.UNBIND, ops.NARROW,
        ops.SELECT, ops.GETITEM, ops.ROLL, ops.FLATTEN, ops.UNFLATTEN, ops.RESHAPE, ops.SQUEEZE,
        ops.UNSQUEEZE, ops.TRANSPOSE, ops.T, ops.ATTRIBUTE, ops.PERMUTE, ops.MOVEDIM, ops.EXPAND,
        ops.REPEAT, ops.CHANNEL_SHUFFLE,
    ),
    "pixels": (ops.PIXEL_SHUFFLE, ops.PIXEL_UNSHUFFLE),
    "reduce": (ops.MEAN, ops.SUM, ops.AMAX, ops.AMIN),
    "softmax": (ops.SOFTMAX, ops.LOG_SOFTMAX),
    "matmul": (ops.MATMUL,),
}  # fmt: skip
_PARTS = (
    ops.ADAPTIVE_MAX_POOL2D, ops.CHUNK, ops.SPLIT, ops.TENSOR_SPLIT, ops.UNBIND,
    ops.NARROW, ops.SELECT, ops.GETITEM,
)  # fmt: skip
# Modules, functions and methods of operators that `torch_ops` does not have.
_MORE: dict[str, tuple[Any, ...]] = {
    "pointwise": ("double",),
    "window": (
        nn.UpsamplingNearest2d,
        nn.UpsamplingBilinear2d,
    ),
    "move": (torch.repeat_interleave, "repeat_interleave"),
    "attention": (F.scaled_dot_product_attention,),
}  # fmt: skip
_KIND_OF_OPERATOR = {op: kind for kind, members in _KINDS.items() for op in members}
_KIND_OF_OTHER = {target: kind for kind, members in _MORE.items() for target in members}


def kind_of(node: fx.Node) -> str:
    """Kind of a node: one of the tables above, "layer", "norm", "placeholder" or "get_attr"; empty
    if unknown.
    """
    if node.op in ("placeholder", "get_attr"):
        return node.op
    module = module_of(node)
    kind = None if module is None else layer_class(module)
    if kind in _LAYERS or kind in _MORE_LAYERS:
        return "layer"
    if kind in _NORMS or (module is not None and is_batchnorm(node)):
        return "norm"
    found = operator_of(node, module)
    if found in _KIND_OF_OPERATOR:
        return _KIND_OF_OPERATOR[found]
    return _KIND_OF_OTHER.get(node.target if module is None else kind, "")


def keeps_range(node: fx.Node) -> bool:
    """True for what hands on numbers of one operand, or numbers between them: the operators that
    keep scale and zero point in a program (`keeps_params`) come of these.
    """
    if is_size(node):
        return False
    if is_pass(node) or operator_of(node) in (ops.MAX_POOL2D, ops.ADAPTIVE_MAX_POOL2D):
        return True
    if operator_of(node) is ops.INTERPOLATE:
        module = module_of(node)
        said = arguments_of(node, ops.INTERPOLATE) if module is None else vars(module)
        return (said or {}).get("mode") in ("nearest", "bilinear")
    moves = kind_of(node) in ("move", "pixels") or operator_of(node) is ops.PAD
    return moves and operator_of(node) not in (ops.CONCAT, ops.STACK)


def narrows(node: fx.Node) -> bool:
    """True for what hands on a part of the numbers, which may have a narrower range."""
    op = operator_of(node)
    return not _keeps_largest(node) if op is ops.MAX_POOL2D else op in _PARTS


def _keeps_largest(node: fx.Node) -> bool:
    """True for a max pool that sees every number, of numbers that are never negative: the range
    from 0 to the largest stays.
    """
    x, module = node.args[0], module_of(node)
    bounds = clamp_bounds(x) if isinstance(x, fx.Node) else None
    if bounds is None or bounds[0] is None or bounds[0] < 0:
        return False
    at = ops.MAX_POOL2D.arguments
    given = {k: getattr(module, k) for k in at} if module else arguments_of(node, ops.MAX_POOL2D)
    if given is None:
        return False
    kernel = two(given["kernel_size"])
    stride = two(given["stride"] or given["kernel_size"])
    if kernel is None or stride is None:
        return False
    return all(k >= s for k, s in zip(kernel, stride, strict=True))


def scales(node: fx.Node) -> bool:
    """True for what can multiply its output's channels: a layer, a norm with a weight for each."""
    module = module_of(node)
    kind = None if module is None else layer_class(module)
    if is_batchnorm(node) or kind in _NORMS:
        return getattr(module, "weight", None) is not None
    return kind in _LAYERS


def keeps_factors(node: fx.Node, inputs: int) -> bool:
    """f(a * x, a * y) = a * f(x, y) for a > 0."""
    bounds = clamp_bounds(node)
    if bounds is not None:
        return all(b in (None, 0.0, math.inf, -math.inf) for b in bounds)
    if is_add(node) or (operator_of(node) is ops.SUB and inputs == 2 and not node.kwargs):
        return True
    if inputs != 1 or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    by_number = is_product(node) and isinstance(node.args[1], (int, float))
    zeros = isinstance(module_of(node), nn.ZeroPad2d)
    return by_number or zeros or kind_of(node) == "window" or is_pass(node) or is_slope(node)


def is_product(node: fx.Node) -> bool:
    """x * y of two operands."""
    return operator_of(node) is ops.MUL and len(node.args) == 2


def softmax_dim(node: fx.Node) -> Any:
    """The axis of a softmax, None where it is not said."""
    module = module_of(node)
    return (arguments_of(node, ops.SOFTMAX) or {}).get("dim") if module is None else module.dim


def reduced_dims(node: fx.Node) -> tuple[Any, bool]:
    """The axes that a mean or its kin runs over (None: not said), and whether it keeps them."""
    said = arguments_of(node, ops.MEAN) or {"dim": None, "keepdim": False}
    return said["dim"], bool(said["keepdim"])

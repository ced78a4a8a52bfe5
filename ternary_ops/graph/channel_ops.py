# SPDX-License-Identifier: Apache-2.0
"""Kinds of operators of a traced network; `channels` says what each kind ties."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ternary_ops.graph.nodes import (
    clamp_bounds,
    is_add,
    is_batchnorm,
    is_pass,
    is_slope,
    module_of,
)

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)
# Of each channel alone over windows of an image, and f(a * x) = a * f(x) for a > 0.
_WINDOW_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d, nn.ZeroPad2d,
)  # fmt: skip
_WINDOW_FUNCTIONS: tuple[Any, ...] = (
    F.max_pool2d, torch.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    F.interpolate,
)  # fmt: skip
# Of each number alone.
_POINTWISE_MODULES = (
    nn.ReLU, nn.Hardtanh, nn.PReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.LogSigmoid,
    nn.Softsign,
)  # fmt: skip
_POINTWISE_FUNCTIONS: tuple[Any, ...] = (
    torch.sigmoid, F.sigmoid, torch.tanh, F.tanh, F.gelu, F.silu, F.mish, F.hardswish,
    F.hardsigmoid, F.elu, F.celu, F.selu, F.softplus, F.logsigmoid, F.softsign, torch.exp,
    torch.sqrt, torch.rsqrt, torch.abs, torch.neg, torch.square, operator.neg, operator.truediv,
    torch.div, torch.maximum, torch.minimum, operator.pow, torch.pow, abs,
)  # fmt: skip
_POINTWISE_METHODS = (
    "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "sqrt", "rsqrt", "abs", "neg", "square", "div",
    "div_", "sub_", "pow", "float", "double",
)  # fmt: skip
_SUM: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUBTRACT: tuple[Any, ...] = (operator.sub, torch.sub, "sub")
_MULTIPLY: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_CONCAT: tuple[Any, ...] = (torch.cat, torch.concat)
_FLATTEN: tuple[Any, ...] = (torch.flatten, "flatten")
# Values go elsewhere, unchanged.
_MOVE_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle)
_MOVE_FUNCTIONS: tuple[Any, ...] = (
    *_CONCAT, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.swapaxes,
    torch.movedim, torch.squeeze, torch.unsqueeze, torch.chunk, torch.split, torch.unbind,
    torch.narrow, torch.stack, torch.repeat_interleave, operator.getitem,
)  # fmt: skip
_MOVE_METHODS = (
    "flatten", "reshape", "view", "permute", "transpose", "swapaxes", "movedim", "squeeze",
    "unsqueeze", "chunk", "split", "unbind", "narrow", "expand", "unflatten", "mT",
    "repeat_interleave",
)  # fmt: skip
_REDUCE: tuple[Any, ...] = (
    torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin",
)  # fmt: skip
_SOFTMAX: tuple[Any, ...] = (F.softmax, torch.softmax, "softmax", F.log_softmax, "log_softmax")
_MATMUL: tuple[Any, ...] = (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm", "__matmul__")
_SHUFFLE = (nn.PixelShuffle, nn.PixelUnshuffle)
_SHUFFLES: tuple[Any, ...] = (F.pixel_shuffle, torch.pixel_shuffle, F.pixel_unshuffle)


def kind_of(node: fx.Node) -> str:
    """ "layer", "norm", "window", "pointwise", "move", "reduce", "softmax", "matmul", "attention",
    "pixels", "placeholder", "get_attr", or "" for what is not known.
    """
    if node.op in ("placeholder", "get_attr"):
        return node.op
    module = module_of(node)
    if module is not None:
        return _kind_of_module(node, module)
    target = node.target
    if target is F.scaled_dot_product_attention:
        return "attention"
    if _is_pointwise(node):
        return "pointwise"
    tables = (
        ("window", _WINDOW_FUNCTIONS), ("move", _MOVE_FUNCTIONS), ("reduce", _REDUCE),
        ("softmax", _SOFTMAX), ("matmul", _MATMUL), ("pixels", _SHUFFLES),
    )  # fmt: skip
    for kind, targets in tables:
        if target in targets:
            return kind
    return "move" if node.op == "call_method" and target in _MOVE_METHODS else ""


def _kind_of_module(node: fx.Node, module: nn.Module) -> str:
    if type(module) in _LAYERS:
        return "layer"
    if is_batchnorm(node) or type(module) in _NORMS:
        return "norm"
    tables = (
        ("window", _WINDOW_MODULES), ("move", _MOVE_MODULES), ("softmax", (nn.Softmax,)),
        ("pixels", _SHUFFLE), ("pointwise", _POINTWISE_MODULES),
    )  # fmt: skip
    for kind, types in tables:
        if isinstance(module, types):
            return kind
    return "pointwise" if is_pass(node) else ""


def _is_pointwise(node: fx.Node) -> bool:
    target = node.target
    if node.op == "call_method" and target in _POINTWISE_METHODS:
        return True
    known = target in (*_SUM, *_SUBTRACT, *_MULTIPLY, *_POINTWISE_FUNCTIONS)
    return known or is_pass(node) or is_slope(node) or clamp_bounds(node) is not None


def scales(node: fx.Node) -> bool:
    """True for what can multiply its output's channels: a layer, a BatchNorm with parameters."""
    module = module_of(node)
    if is_batchnorm(node):
        return getattr(module, "weight", None) is not None
    return type(module) in _LAYERS


def keeps_factors(node: fx.Node, inputs: int) -> bool:
    """f(a * x, a * y) = a * f(x, y) for a > 0."""
    bounds = clamp_bounds(node)
    if bounds is not None:
        return all(b in (None, 0.0, math.inf, -math.inf) for b in bounds)
    if is_add(node) or (node.target in _SUBTRACT and inputs == 2 and not node.kwargs):
        return True
    if inputs != 1 or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    by_number = is_product(node) and isinstance(node.args[1], (int, float))
    called = node.op == "call_function" and node.target in _WINDOW_FUNCTIONS
    kept = isinstance(module_of(node), _WINDOW_MODULES) or called or by_number
    return kept or is_pass(node) or is_slope(node)


def is_product(node: fx.Node) -> bool:
    """x * y of two operands."""
    call = node.op in ("call_function", "call_method") and node.target in _MULTIPLY
    return call and len(node.args) == 2


def is_concat(node: fx.Node) -> bool:
    """A concatenation of channels of images or rows."""
    if node.op != "call_function" or node.target not in _CONCAT or not node.args:
        return False
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return axis in (1, -3)


def is_flatten(node: fx.Node) -> bool:
    """A call of flatten."""
    return isinstance(module_of(node), nn.Flatten) or node.target in _FLATTEN


def softmax_dim(node: fx.Node) -> Any:
    """The axis of a softmax, None where it is not said."""
    module = module_of(node)
    if module is not None:
        return module.dim
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")


def reduced_dims(node: fx.Node) -> tuple[Any, bool]:
    """The axes that a mean or its kin runs over (None: not said), and whether it keeps them."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return dims, bool(keeps)

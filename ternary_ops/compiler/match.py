# SPDX-License-Identifier: Apache-2.0
"""Which program ops a traced node is: modules, functions and tensor methods in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import fx, nn

from ternary_ops.compiler.match_values import MATCHERS
from ternary_ops.compiler.node import (
    Op,
    Unsupported,
    calls,
    constants,
    need_rank,
    pair,
    shape_of,
    source,
)
from ternary_ops.graph.trace import clamp_bounds, is_add, is_batchnorm, is_layer, is_pass, module_of

SUPPORTED = (
    "Conv2d, ConvTranspose2d and Linear (torch.nn's, tops.nn's, packed; also as functions of "
    "parameters and as products x @ weight), BatchNorm2d, ReLU, ReLU6, Hardtanh, clamp, LeakyReLU, "
    "PReLU, SiLU, hardswish, sigmoid, GELU and the like, MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d, mean over H and W, sums, differences and products of two tensors "
    "or with numbers, squeeze-excite gates, cat, chunk and split of channels, pixel and "
    "channel shuffles, nearest and bilinear interpolate, softmax, LayerNorm, flatten, Identity, "
    "Dropout, as modules, functions or tensor methods"
)

_MAX_POOL = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}
_AVG_POOL = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}


def match(node: fx.Node) -> list[Op]:
    """The ops a node is, one after the other; none for what changes nothing.

    Raises Unsupported with the reason.
    """
    for matcher in MATCHERS:
        if not is_add(node) and (found := matcher(node)) is not None:
            return found
    x = source(node)
    if is_layer(node):
        need_rank(x, 4 if isinstance(getattr(module_of(node), "kernel_size", None), tuple) else 2)
        return [("layer", {})]
    if is_pass(node):
        return []
    if is_batchnorm(node):
        need_rank(x, 4)
        return [("batchnorm", {})]
    if is_add(node):
        shapes = [shape_of(a) for a in node.all_input_nodes]
        if len(set(shapes)) != 1:
            raise Unsupported(f"it adds shapes {shapes}")
        return [("add", {"operands": tuple(node.args)})]
    bounds = clamp_bounds(node)
    if bounds is not None:
        return [("clamp", {"clamp": bounds})]
    found = _max_pool(node) or _avg_pool(node) or _adaptive(node) or _mean(node) or _flatten(node)
    if found is None:
        raise Unsupported("there is no program op for it")
    if found and found[0][0] != "flatten":
        need_rank(x, 4)
    return found


def _max_pool(node: fx.Node) -> list[Op] | None:
    if not calls(node, nn.MaxPool2d, F.max_pool2d, torch.max_pool2d):
        return None
    o = constants(node, _MAX_POOL)
    if o["return_indices"]:
        raise Unsupported("return_indices is not supported")
    attrs = {"kernel": pair(o["kernel_size"]), "stride": pair(o["stride"] or o["kernel_size"])}
    rest = {"padding": pair(o["padding"]), "dilation": pair(o["dilation"]), "ceil": o["ceil_mode"]}
    return [("max_pool2d", attrs | rest)]


def _avg_pool(node: fx.Node) -> list[Op] | None:
    if not calls(node, nn.AvgPool2d, F.avg_pool2d):
        return None
    o = constants(node, _AVG_POOL)
    attrs = {
        "kernel": pair(o["kernel_size"]),
        "stride": pair(o["stride"] or o["kernel_size"]),
        "padding": pair(o["padding"]),
        "ceil": o["ceil_mode"],
        "include_pad": o["count_include_pad"],
        "divisor": o["divisor_override"],
    }
    return [("avg_pool2d", attrs)]


def _adaptive(node: fx.Node) -> list[Op] | None:
    if not calls(node, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d):
        return None
    size = constants(node, {"output_size": None})["output_size"]
    return [("adaptive_avg_pool2d", {"size": pair(size)})]


def _mean(node: fx.Node) -> list[Op] | None:
    if node.target not in (torch.mean, "mean"):
        return None
    o = constants(node, {"dim": None, "keepdim": False, "dtype": None})
    dims = o["dim"] if isinstance(o["dim"], Sequence) else (o["dim"],)
    if o["dtype"] is not None or sorted(d % 4 for d in dims if isinstance(d, int)) != [2, 3]:
        raise Unsupported("a mean is supported over H and W together")
    pooled: list[Op] = [("adaptive_avg_pool2d", {"size": (1, 1)})]
    return pooled if o["keepdim"] else [*pooled, ("flatten", {})]


def _flatten(node: fx.Node) -> list[Op] | None:
    """Any spelling of [N, C, H, W] -> [N, C*H*W] or [N, K] -> [N, K] that holds for every N."""
    module = module_of(node)
    known = node.target in (torch.flatten, "flatten", torch.reshape, "reshape", "view")
    if not (known or type(module) is nn.Flatten):
        return None
    before, after = shape_of(source(node)), shape_of(node)
    if before is None or len(before) not in (2, 4) or after != (before[0], math.prod(before[1:])):
        raise Unsupported(f"it reshapes {before} to {after}; only [N, -1] is supported")
    sizes = node.args[1:]
    if node.target in (torch.reshape, "reshape", "view"):
        if len(sizes) == 1 and isinstance(sizes[0], Sequence):
            sizes = tuple(sizes[0])
        if not sizes or not (isinstance(sizes[0], fx.Node) or sizes[0] == -1):
            raise Unsupported("its batch size is a constant; write x.size(0)")
    return [("flatten", {})] if len(before) == 4 else []

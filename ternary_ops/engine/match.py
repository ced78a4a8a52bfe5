# SPDX-License-Identifier: Apache-2.0
"""Which program ops a traced node is: modules, functions and tensor methods in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ternary_ops.quantize.trace import (
    clamp_bounds,
    is_add,
    is_batchnorm,
    is_layer,
    is_pass,
    module_of,
)

SUPPORTED = (
    "Conv2d and Linear (torch.nn's, tops.nn's, packed), BatchNorm2d, ReLU, ReLU6, Hardtanh, clamp, "
    "MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, mean over H and W, the sum of two tensors of one "
    "shape, flatten, Identity, Dropout, as modules, functions or tensor methods"
)

# An op of engine.ir and its attributes; or "layer" and "batchnorm", whose module says the rest.
Op: TypeAlias = tuple[str, dict[str, Any]]

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


class Unsupported(Exception):
    """Why a node has no program op; lowering collects them all."""


class Consequence(Unsupported):
    """The node reads one that is unsupported, which is reason enough to name that one only."""


class Shapes(fx.Interpreter):
    """Runs a traced network once and notes every value's shape: None for sizes and constants, ()
    for several tensors at once.
    """

    def run_node(self, n: fx.Node) -> Any:
        """As the base class, and fill n.meta["shape"]."""
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            n.meta["shape"] = ()
        return value


def source(node: fx.Node) -> fx.Node:
    """The tensor a node works on; raises Unsupported when it is a constant."""
    x = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(x, fx.Node) or shape_of(x) is None:
        raise Unsupported("it does not work on a tensor that comes from the input")
    if shape_of(x) == ():
        raise Consequence
    return x


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """What Shapes noted."""
    shape: tuple[int, ...] | None = node.meta.get("shape")
    return shape


def match(node: fx.Node) -> list[Op]:
    """The ops a node is, one after the other; none for what changes nothing.

    Raises Unsupported with the reason.
    """
    x = source(node)
    if is_layer(node):
        _need_rank(x, 4 if isinstance(getattr(module_of(node), "kernel_size", None), tuple) else 2)
        return [("layer", {})]
    if is_pass(node):
        return []
    if is_batchnorm(node):
        _need_rank(x, 4)
        return [("batchnorm", {})]
    if is_add(node):
        shapes = [shape_of(a) for a in node.all_input_nodes]
        if len(set(shapes)) != 1:
            raise Unsupported(f"it adds shapes {shapes}")
        return [("add", {})]
    bounds = clamp_bounds(node)
    if bounds is not None:
        return [("clamp", {"clamp": bounds})]
    found = _max_pool(node) or _avg_pool(node) or _adaptive(node) or _mean(node) or _flatten(node)
    if found is None:
        raise Unsupported("there is no program op for it")
    if found and found[0][0] != "flatten":
        _need_rank(x, 4)
    return found


def _need_rank(x: fx.Node, rank: int) -> None:
    shape = shape_of(x)
    if shape is None or len(shape) != rank:
        raise Unsupported(f"its input has shape {shape}, rank {rank} is supported")


def _options(node: fx.Node, defaults: dict[str, Any]) -> dict[str, Any]:
    """Arguments after the tensor, of a functional call or of the module; constants only."""
    module = module_of(node)
    if module is not None:
        return {name: getattr(module, name, value) for name, value in defaults.items()}
    given = dict(zip(defaults, node.args[1:], strict=False)) | dict(node.kwargs)
    given.pop("input", None)
    found = {**defaults, **given}
    if set(found) != set(defaults) or any(isinstance(v, fx.Node) for v in found.values()):
        raise Unsupported("its arguments are not all constants this package knows")
    return found


def pair(value: Any) -> tuple[int, int]:
    """An int or two of them as two; raises Unsupported."""
    two = (value, value) if isinstance(value, int) else tuple(value)
    if len(two) == 1:
        two *= 2
    if len(two) != 2 or not all(isinstance(v, int) for v in two):
        raise Unsupported(f"{value!r} is not one or two integers")
    return int(two[0]), int(two[1])


def _calls(node: fx.Node, module: type[nn.Module], *functions: Any) -> bool:
    called = node.op == "call_function" and node.target in functions
    return called or type(module_of(node)) is module


def _max_pool(node: fx.Node) -> list[Op] | None:
    if not _calls(node, nn.MaxPool2d, F.max_pool2d, torch.max_pool2d):
        return None
    o = _options(node, _MAX_POOL)
    if o["return_indices"]:
        raise Unsupported("return_indices is not supported")
    attrs = {"kernel": pair(o["kernel_size"]), "stride": pair(o["stride"] or o["kernel_size"])}
    rest = {"padding": pair(o["padding"]), "dilation": pair(o["dilation"]), "ceil": o["ceil_mode"]}
    return [("max_pool2d", attrs | rest)]


def _avg_pool(node: fx.Node) -> list[Op] | None:
    if not _calls(node, nn.AvgPool2d, F.avg_pool2d):
        return None
    o = _options(node, _AVG_POOL)
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
    if not _calls(node, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d):
        return None
    size = _options(node, {"output_size": None})["output_size"]
    return [("adaptive_avg_pool2d", {"size": pair(size)})]


def _mean(node: fx.Node) -> list[Op] | None:
    if node.target not in (torch.mean, "mean"):
        return None
    o = _options(node, {"dim": None, "keepdim": False, "dtype": None})
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

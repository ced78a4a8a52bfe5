# SPDX-License-Identifier: Apache-2.0
"""Interpolation of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from ternary_ops.compiler.arrange import canonical
from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call, pair
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import operator_of


def _interpolate(call: Call) -> Value:
    return call.image(lambda x: _resized(call, x))


def _resized(call: Call, x: Step) -> Step:
    """To a size, by a factor, or to the size of another tensor."""
    options = call.arguments(free=("size",))
    mode, size, zoom = options["mode"], options["size"], options["scale_factor"]
    if mode == "area" and size is not None and _sized_like(size) is None:
        return Step("adaptive_avg_pool2d", [x], {"size": pair(size)})
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic") or options["antialias"]:
        modes = "nearest, nearest-exact, bilinear and bicubic, area to a size, without antialias"
        raise Unsupported(f"resizing by {modes} is supported, this is {mode}")
    at: dict[str, Any] = {"mode": mode, "align": bool(options["align_corners"])}
    if size is not None and (like := _sized_like(size)) is not None:
        return Step("resize", [x, canonical(call.value(like)).step], at)
    if size is not None:
        return Step("resize", [x], {**at, "size": pair(size)})
    zooms = tuple(zoom) if isinstance(zoom, Sequence) else (zoom, zoom)
    exact = all(isinstance(z, (int, float)) and float(np.float32(z)) == z for z in zooms)
    if len(zooms) != 2 or not exact or options["recompute_scale_factor"] or at["align"]:
        raise Unsupported("scale factors are float32 numbers, without align_corners; pass a size")
    return Step("resize", [x], {**at, "zoom": tuple(float(z) for z in zooms)})


def _sized_like(size: Any) -> fx.Node | None:
    """The tensor whose height and width `size` says; None for constants."""
    if isinstance(size, Sequence) and any(isinstance(v, fx.Node) for v in size):
        found = [_length_of(v) for v in size]
        if len(found) == 2 and found[0][0] is found[1][0] and [f[1] for f in found] == [2, 3]:
            return found[0][0]
    elif isinstance(size, fx.Node):
        whole, index = size.args if operator_of(size) is torch_ops.GETITEM else (None, None)
        if index in (slice(2, None), slice(-2, None)) and isinstance(whole, fx.Node):
            return _shape_owner(whole)
    else:
        return None
    raise Unsupported("its size is neither constant nor the image size of another tensor")


def _shape_owner(node: fx.Node) -> fx.Node | None:
    by_attribute = node.target is getattr and node.args[1] == "shape"
    by_method = node.op == "call_method" and node.target == "size" and len(node.args) == 1
    owner = node.args[0] if by_attribute or by_method else None
    return owner if isinstance(owner, fx.Node) else None


def _length_of(node: Any) -> tuple[fx.Node | None, int]:
    """The tensor and axis that a number is the length of; (None, -1) otherwise."""
    arguments: tuple[Any, ...] = node.args if isinstance(node, fx.Node) else ()
    if len(arguments) == 2 and isinstance(arguments[1], int):
        whole, axis = arguments
        if node.op == "call_method" and node.target == "size":
            return (whole if isinstance(whole, fx.Node) else None), axis % 4
        if operator_of(node) is torch_ops.GETITEM and isinstance(whole, fx.Node):
            return _shape_owner(whole), axis % 4
    return None, -1


ROWS = {torch_ops.INTERPOLATE: Row(_interpolate, "nearest, bilinear and bicubic interpolate")}

# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that become torch.nn layers: they have weights, or windows over an image."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ternary_ops.interchange import import_constants
from ternary_ops.interchange.import_ranges import Codes
from ternary_ops.interchange.loader import Loader
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.interchange.rules import Attributes, Made, Read


def _ends(at: Attributes) -> tuple[int, int, int, int]:
    """Padding at the top, left, bottom and right."""
    automatic = at.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        return 0, 0, 0, 0
    if automatic != "NOTSET":
        raise Unsupported("explicit pads", f"auto_pad = {automatic}")
    pads = list(at.get("pads", [0, 0, 0, 0]))
    if len(pads) != 4 or min(pads) < 0:
        raise Unsupported("pads on both sides of H and W", f"pads = {pads}")
    top, left, bottom, right = map(int, pads)
    return top, left, bottom, right


def _pads(at: Attributes) -> tuple[int, int]:
    """Padding per axis; equal on both sides, which is all that torch layers know."""
    top, left, bottom, right = _ends(at)
    if (top, left) != (bottom, right):
        raise Unsupported("equal pads on both sides of H and W", f"pads = {list(at['pads'])}")
    return top, left


def _pair(at: Attributes, name: str) -> tuple[int, int]:
    values = at.get(name, (1, 1))
    if len(values) != 2 or min(values) < 1:
        raise Unsupported(f"two positive {name}", f"{name} = {list(values)}")
    return int(values[0]), int(values[1])


def _check_width(loader: Loader, node: Any, axis: int, wide: int) -> None:
    """Refuse a weight that does not fit the input, as far as the file tells that input's size."""
    dims = loader.dims(node.input[0])
    if dims is not None and isinstance(dims[axis], int) and dims[axis] != wide:
        raise Unsupported(f"weights for {dims[axis]} input channels", f"for {wide}")


def _check_window(
    loader: Loader,
    node: Any,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    pads: tuple[int, int],
) -> None:
    """Refuse a window that is larger than the image, as far as the file tells that one's size."""
    dims = loader.dims(node.input[0]) or ()
    for n, k, d, p in zip(dims[2:], kernel, dilation, pads, strict=False):
        if isinstance(n, int) and n + 2 * p < d * (k - 1) + 1:
            raise Unsupported(f"a window within {list(dims[2:])}", f"kernel_shape = {list(kernel)}")


def conv(loader: Loader, node: Any, at: Attributes) -> Made:
    """Conv2d."""
    weight = loader.tensor(node, 1)
    if weight.ndim != 4:
        raise Unsupported("filters [O, I, R, S]", list(weight.shape))
    groups, (o, i, r, s) = int(at.get("group", 1)), weight.shape
    if list(at.get("kernel_shape", (r, s))) != [r, s]:
        raise Unsupported(f"kernel_shape = {[r, s]}, the filters'", at["kernel_shape"])
    if groups < 1 or o % groups:
        raise Unsupported(f"groups that divide {o} filters", f"group = {groups}")
    _check_width(loader, node, 1, i * groups)
    bias, dilation = _bias(loader, node, o), _pair(at, "dilations")
    top, left, bottom, right = _ends(at)
    pads = min(top, bottom), min(left, right)
    more = (left - pads[1], right - pads[1], top - pads[0], bottom - pads[0])
    _check_window(loader, node, (r, s), dilation, (max(top, bottom), max(left, right)))
    layer = nn.Conv2d(
        *(i * groups, o, (r, s)),
        stride=_pair(at, "strides"),
        padding=pads,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    fill(layer, weight, bias)
    codes, x = loader.codes.get(node.input[1]), loader.value(node, 0)
    x = loader.call(F.pad, x, more) if any(more) else x
    return loader.layer(node, layer, x, node.input[1], codes)


def _bias(loader: Loader, node: Any, wide: int) -> Tensor | None:
    if loader.constant(node, 2) is None:
        return None
    bias = loader.tensor(node, 2)
    if tuple(bias.shape) != (wide,):
        raise Unsupported(f"a bias [{wide}]", list(bias.shape))
    return bias


def gemm(loader: Loader, node: Any, at: Attributes) -> Made:
    """Linear; alpha belongs to the weight and to its codes, beta to the bias."""
    alpha = float(at.get("alpha", 1.0))
    weight = loader.tensor(node, 1)
    if weight.ndim != 2:
        raise Unsupported("a weight of two axes", list(weight.shape))
    weight, turned = alpha * weight, not at.get("transB", 0)
    weight = weight.T if turned else weight
    codes = _turned(loader.codes.get(node.input[1]), turned)
    if codes is not None:
        codes = dataclasses.replace(codes, scale=codes.scale * alpha) if alpha > 0 else None
    return _linear(loader, node, weight, _gemm_bias(loader, node, at, len(weight)), codes)


def _gemm_bias(loader: Loader, node: Any, at: Attributes, wide: int) -> Tensor | None:
    if loader.constant(node, 2) is None:
        return None
    bias = loader.tensor(node, 2)
    if tuple(bias.shape) not in ((), (1,), (1, 1), (wide,), (1, wide)):
        raise Unsupported(f"a bias [{wide}], the same for each row", list(bias.shape))
    return float(at.get("beta", 1.0)) * bias.reshape(-1).expand(wide)


def _turned(codes: Codes | None, turned: bool) -> Codes | None:
    if codes is None or not turned:
        return codes
    axis = 1 - codes.axis if codes.scale.size > 1 else 0
    return Codes(codes.values.T, codes.scale, axis)


def matmul(loader: Loader, node: Any, at: Attributes) -> Made:
    """Linear, over the last axis, or a product of two values, one of which may be a constant."""
    if max(loader.rank(name) for name in node.input) < 2:
        raise Unsupported("an operand of two axes or more", "two of fewer")
    if not loader.is_constant(node.input[1]) or loader.is_constant(node.input[0]):
        return loader.call(operator.matmul, _factor(loader, node, 0), _factor(loader, node, 1))
    weight = loader.tensor(node, 1)
    if weight.ndim != 2:
        return loader.call(operator.matmul, loader.value(node, 0), loader.buffer(weight))
    codes = _turned(loader.codes.get(node.input[1]), True)
    return _linear(loader, node, weight.T, None, codes)


def _factor(loader: Loader, node: Any, number: int) -> fx.Node:
    if loader.is_constant(node.input[number]):
        return loader.buffer(loader.tensor(node, number))
    return loader.value(node, number)


def _linear(
    loader: Loader, node: Any, weight: Tensor, bias: Tensor | None, codes: Codes | None
) -> fx.Node:
    x = loader.value(node, 0)
    _check_width(loader, node, -1, weight.shape[1])
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    fill(layer, weight, bias)
    return loader.layer(node, layer, x, node.input[1], codes)


@torch.no_grad()
def fill(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy weight and bias into a layer of their shapes."""
    layer.weight.copy_(weight)
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias)


def channelwise(
    loader: Loader, node: Any, x: fx.Node, row: bool, scale: Tensor, bias: Tensor | None
) -> fx.Node:
    """x * scale + bias with one number a channel, as a depthwise convolution, which programs run.
    x is a row [N, C] or an image [N, C, H, W].
    """
    wide = len(scale)
    layer = nn.Conv2d(wide, wide, 1, groups=wide, bias=bias is not None)
    fill(layer, scale.reshape(-1, 1, 1, 1), bias)
    everything = slice(None)
    image = loader.call(operator.getitem, x, (everything, everything, None, None)) if row else x
    out = loader.layer(node, layer, image, "", None)
    return loader.call(torch.flatten, out, 1) if row else out


def batchnorm(loader: Loader, node: Any, at: Attributes) -> Made:
    """BatchNorm by its running statistics."""
    if loader.opset is not None and loader.opset < 7 and not at.get("is_test", 0):
        raise Unsupported("is_test = 1", "is_test = 0")
    scale, bias, mean, var = (loader.tensor(node, n) for n in range(1, 5))
    if {tuple(t.shape) for t in (scale, bias, mean, var)} != {(scale.numel(),)}:
        raise Unsupported("four vectors of one length", [list(t.shape) for t in (scale, bias)])
    _check_width(loader, node, 1, scale.numel())
    kind = nn.BatchNorm2d if loader.rank(node.input[0]) == 4 else nn.BatchNorm1d
    layer = kind(len(scale), eps=float(at.get("epsilon", 1e-5)))
    state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    layer.load_state_dict(state, strict=False)
    return loader.layer(node, layer, loader.value(node, 0), node.input[1], None)


def group_norm(loader: Loader, node: Any, at: Attributes) -> Made:
    """GroupNorm; its scale and bias have a number a channel since opset 21."""
    scale, bias, groups = loader.tensor(node, 1), loader.tensor(node, 2), int(at["num_groups"])
    if scale.ndim != 1 or scale.shape != bias.shape or groups < 1 or len(scale) % groups:
        got = f"{list(scale.shape)}, {list(bias.shape)} and num_groups = {groups}"
        raise Unsupported("two vectors of channels that split into groups", got)
    _check_width(loader, node, 1, len(scale))
    layer = nn.GroupNorm(groups, len(scale), eps=float(at.get("epsilon", 1e-5)))
    layer.load_state_dict({"weight": scale, "bias": bias})
    return loader.layer(node, layer, loader.value(node, 0), node.input[1], None)


def max_pool(loader: Loader, node: Any, at: Attributes) -> Made:
    """MaxPool2d."""
    kernel, dilation = _pair(at, "kernel_shape"), _pair(at, "dilations")
    _check_window(loader, node, kernel, dilation, _pads(at))
    layer = nn.MaxPool2d(
        kernel,
        _pair(at, "strides"),
        _pool_pads(at, kernel),
        dilation,
        ceil_mode=bool(at.get("ceil_mode", 0)),
    )
    return loader.layer(node, layer, loader.value(node, 0), "", None)


def average_pool(loader: Loader, node: Any, at: Attributes) -> Made:
    """AvgPool2d."""
    kernel = _pair(at, "kernel_shape")
    if _pair(at, "dilations") != (1, 1):
        raise Unsupported("dilations = [1, 1]", f"dilations = {at['dilations']}")
    _check_window(loader, node, kernel, (1, 1), _pads(at))
    layer = nn.AvgPool2d(
        kernel,
        _pair(at, "strides"),
        _pool_pads(at, kernel),
        ceil_mode=bool(at.get("ceil_mode", 0)),
        count_include_pad=bool(at.get("count_include_pad", 0)),
    )
    return loader.layer(node, layer, loader.value(node, 0), "", None)


def _pool_pads(at: Attributes, kernel: tuple[int, int]) -> tuple[int, int]:
    pads = _pads(at)
    if any(2 * pad > k for pad, k in zip(pads, kernel, strict=True)):
        raise Unsupported(f"pads of at most half of {list(kernel)}", f"pads = {list(at['pads'])}")
    return pads


def global_pool(loader: Loader, node: Any, at: Attributes) -> Made:
    """The mean over H and W."""
    return loader.layer(node, nn.AdaptiveAvgPool2d(1), loader.value(node, 0), "", None)


def global_max_pool(loader: Loader, node: Any, at: Attributes) -> Made:
    """The maximum over H and W."""
    return loader.layer(node, nn.AdaptiveMaxPool2d(1), loader.value(node, 0), "", None)


def prelu(loader: Loader, node: Any, at: Attributes) -> Made:
    """PReLU with one slope for all, or one a channel."""
    slope, x = loader.tensor(node, 1), loader.value(node, 0)
    rank = loader.rank(node.input[0])
    # Before opset 7 a vector of slopes belongs to the channels, later to the last axis.
    vector = loader.opset is not None and loader.opset < 7
    shape = [1, slope.numel()] if vector else [1] * (rank - slope.ndim) + list(slope.shape)
    dims = loader.dims(node.input[0])
    if slope.numel() != 1:
        fits = dims is not None and len(dims) > 1 and dims[1] == slope.numel()
        if not fits or len(shape) < 2 or shape[1] != slope.numel() or slope.ndim > rank:
            raise Unsupported("one slope, or one for each channel", f"slopes {list(slope.shape)}")
    elif slope.ndim > rank:
        raise Unsupported(f"slopes of at most {rank} axes", list(slope.shape))
    layer = nn.PReLU(slope.numel())
    with torch.no_grad():
        layer.weight.copy_(slope.reshape(-1))
    return loader.layer(node, layer, x, node.input[1], None)


def reduction(function: Any, **more: Any) -> Read:
    """A function over given axes, with further arguments."""

    def read(loader: Loader, node: Any, at: Attributes) -> Made:
        axes = import_constants.axes_of(loader, node, at)
        if not axes:
            raise Unsupported("axes", f"axes = {axes}")
        rank = loader.rank(node.input[0])
        if not all(-rank <= a < rank for a in axes):
            raise Unsupported(f"axes of {rank}", f"axes = {axes}")
        x, places = loader.value(node, 0), tuple(sorted({a % rank for a in axes}))
        empty = {*places} & {*loader.shapes.empty_axes(node.input[0])}
        if empty and function in (torch.amax, torch.amin):
            raise Unsupported("numbers to take the extreme of", f"axis {min(empty)} of size 0")
        return loader.call(function, x, dim=places, keepdim=bool(at.get("keepdims", 1)), **more)

    return read

# SPDX-License-Identifier: Apache-2.0
"""Layers of torch.nn that do what subclasses with a forward of their own do.

A convolution that pads unevenly, or computes its weight from its parameters, is a plain one once
the constants are folded; quantize_ replaces it by the twin of that. One that pads by the size of
the image, as TensorFlow does, is found by traces at several sizes.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import fx, nn

from ternary_ops.errors import UnsupportedModel
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import arguments_of, is_batchnorm, is_pass, layer_class, look_up
from ternary_ops.graph.trace import evaluating, trace
from ternary_ops.nn.geometry import (
    Edges,
    PaddedConv2d,
    Padding,
    edges_at,
    edges_of,
    geometry_of,
)

_FLOAT = (nn.Linear, nn.Conv2d)


@torch.no_grad()
def twin_of(module: nn.Module) -> nn.Module | None:
    """A Linear, Conv2d or PaddedConv2d that computes in eval mode what a subclass does, with the
    parameters of that; None where it does more than put zeros around the image and compute its
    weight, and for modules that are no such subclass.
    """
    if not isinstance(module, _FLOAT) or layer_class(module) is not None:
        return None
    holder = nn.Sequential(module)
    with evaluating(holder):
        try:
            traced = trace(holder)
        except UnsupportedModel:
            return _same_padded(holder, module) if isinstance(module, nn.Conv2d) else None
        return _twin(traced)


@torch.no_grad()
def rest_of(module: nn.Module) -> nn.Module | None:
    """What a BatchNorm does after it has normalized with its running statistics: nothing, or of a
    subclass the modules of its own that its forward calls, one after the other. None for others.
    """
    if layer_class(module) in torch_ops.BATCH_NORM.modules:
        return nn.Identity()
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return None
    try:
        first, norm, *calls, output = trace(nn.Sequential(module)).graph.nodes
    except (UnsupportedModel, ValueError):
        return None
    value, rest = norm, OrderedDict[str, nn.Module]()
    if not is_batchnorm(norm) or norm.args != (first,):
        return None
    for node in calls:
        path = str(node.target).removeprefix("0.")
        if node.op != "call_module" or node.args != (value,) or node.kwargs or "." in path:
            return None
        value, rest[path] = node, module.get_submodule(path)
    return nn.Sequential(rest) if output.args == (value,) else None


def _twin(traced: fx.GraphModule) -> nn.Module | None:
    border, layer, value = (0, 0, 0, 0), None, None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            value = node
            continue
        if node.op == "output":
            return layer if node.args[0] is value else None
        module, op = look_up(node)
        if node.args[:1] != (value,):
            return None
        value = node
        if op is torch_ops.PAD and layer is None:
            ends = _zeros(node, module)
            if ends is None:
                return None
            border = _sum(border, ends)
        elif module is not None and layer_class(module) in _FLOAT and layer is None:
            layer = _with_border(module, border)
            if layer is None:
                return None
        elif not is_pass(node):
            return None
    return None


def _same_padded(holder: nn.Module, module: nn.Conv2d) -> nn.Module | None:
    """The twin of a convolution whose padding is "same" (`geometry.edges_at`) at sizes of every
    remainder by its stride; None for another one, or where more than its padding depends on sizes.
    """
    twin: nn.Module | None = None
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    for more in range(2 * max(module.stride)):
        height, width = spans[0] + more, spans[1] + more + 1
        like = module.weight.new_zeros(2, module.in_channels, height, width)
        try:
            twin = _twin(trace(holder, example=like))
        except UnsupportedModel:
            return None
        if not isinstance(twin, nn.Conv2d):
            return None
        same = _padded(twin, "same")
        if edges_of(twin) != edges_at(same, height, width):
            return None
        twin = same
    return twin


def _zeros(node: fx.Node, module: nn.Module | None) -> Edges | None:
    """Left, right, top and bottom of zeros around an image; None for other borders."""
    at = arguments_of(node, torch_ops.PAD)
    if module is not None:
        plain = isinstance(module, nn.ConstantPad2d) and not module.value
        ends = tuple(module.padding) if plain else ()  # type: ignore[arg-type]
    elif at is None or at["mode"] != "constant" or at["value"]:
        ends = ()
    else:
        ends = tuple(at["pad"])
    if len(ends) not in (2, 4) or not all(isinstance(end, int) and end >= 0 for end in ends):
        return None
    left, right, top, bottom = (*ends, 0, 0)[:4]
    return left, right, top, bottom


def _sum(a: Edges, b: Edges) -> Edges:
    left, right, top, bottom = (x + y for x, y in zip(a, b, strict=True))
    return left, right, top, bottom


def _with_border(module: nn.Module, border: Edges) -> nn.Module | None:
    """The layer behind a border; None where that is larger at the top or left, or no zeros are
    inside it.
    """
    if not any(border):
        return module
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return None
    inside = edges_of(module)
    if inside == "same":
        return None
    edges = _sum(border, inside)
    return None if edges[0] > edges[1] or edges[2] > edges[3] else _padded(module, edges)


def _padded(module: nn.Conv2d, edges: Padding) -> PaddedConv2d:
    """A convolution with the parameters of another one, and these zeros around the image."""
    sizes = {**geometry_of(module), "bias": module.bias is not None, "device": "meta"}
    twin = PaddedConv2d(**sizes, edges=edges)
    twin.weight, twin.bias = module.weight, module.bias
    return twin.train(module.training)

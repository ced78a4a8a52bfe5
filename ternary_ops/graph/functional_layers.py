# SPDX-License-Identifier: Apache-2.0
"""Layers that a network writes as functions of its parameters, as modules of the trace.

`F.conv2d(x, self.w, self.b)`, `F.conv_transpose2d`, `F.linear`, `F.layer_norm`, `torch.addmm` and
products `x @ self.w` become calls of Conv2d, ConvTranspose2d, Linear and LayerNorm, so that
everything after the trace knows one form of a layer. Parameters may be transposed or reshaped on
the way. Calls with arguments that such a module does not have are left alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Made = tuple[fx.Node, nn.Module]  # the input and the layer
_PRODUCTS = (operator.matmul, torch.matmul, torch.mm, "matmul", "mm")


def name_layers_(traced: fx.GraphModule) -> None:
    """Replace such calls in the trace, in place."""
    known = _constants(traced)
    for node in list(traced.graph.nodes):
        if node in known or node.op not in ("call_function", "call_method"):
            continue
        made = next((m for make in _MAKERS if (m := make(node, known)) is not None), None)
        if made is None:
            continue
        x, layer = made
        name = f"{node.name}_of_{_owner(node, known)}"
        traced.add_submodule(name, layer.eval())
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(name, (x,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _constants(traced: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Values of parameters and buffers, and of functions of one of them."""
    found: dict[fx.Node, Tensor] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value: Any = traced
            for part in str(node.target).split("."):
                value = getattr(value, part)
        elif _turns(node):
            value = found.get(node.args[0])
            if value is not None:
                value = getattr(value, str(node.target))(*node.args[1:], **node.kwargs)
        elif node.target is getattr and node.args[0] in found and node.args[1] == "T":
            value = found[node.args[0]].T
        else:
            continue
        if isinstance(value, Tensor):
            found[node] = value.detach()
    return found


def _turns(node: fx.Node) -> bool:
    """A method of one tensor that leaves it as it is: t(), transpose(0, 1), reshape(...)."""
    whole = node.args[:1] == tuple(node.all_input_nodes)
    return node.op == "call_method" and whole and not str(node.target).endswith("_")


def _owner(node: fx.Node, known: dict[fx.Node, Tensor]) -> str:
    """The parameter's name, for people."""
    weight = next(n for n in node.all_input_nodes if n in known)
    while weight.op != "get_attr":
        weight = weight.all_input_nodes[0]
    return str(weight.target).replace(".", "_")


def _arguments(node: fx.Node, names: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, Any]:
    given = dict(zip((*names, *defaults), node.args, strict=False)) | dict(node.kwargs)
    return {**defaults, **given}


def _fits(node: fx.Node, x: Any, weight: Any, bias: Any, known: dict[fx.Node, Tensor]) -> bool:
    """Is x traced, are weight and bias (perhaps none) parameters, and is all else constant?"""
    parameters = [weight] if bias is None else [weight, bias]
    traced = isinstance(x, fx.Node) and x not in known
    given = all(isinstance(p, fx.Node) and p in known for p in parameters)
    return traced and given and set(node.all_input_nodes) <= {x, *parameters}


def _fill(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    filled: nn.Module = layer
    return filled


def _conv(node: fx.Node, known: dict[fx.Node, Tensor]) -> Made | None:
    transposed = node.target in (F.conv_transpose2d, torch.conv_transpose2d)
    if not transposed and node.target not in (F.conv2d, torch.conv2d):
        return None
    options: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0}
    options |= {"output_padding": 0, "groups": 1} if transposed else {"dilation": 1, "groups": 1}
    options |= {"dilation": 1} if transposed else {}
    at = _arguments(node, ("input", "weight"), options)
    x, weight, bias = at.pop("input"), at.pop("weight"), at.pop("bias")
    if not _fits(node, x, weight, bias, known):
        return None
    w = known[weight]
    inner, outer = w.shape[0], w.shape[1] * at["groups"]
    channels = (inner, outer) if transposed else (outer, inner)
    kind: Any = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(*channels, tuple(w.shape[2:]), bias=bias is not None, **at)
    return x, _fill(layer, w, None if bias is None else known[bias])


def _linear(node: fx.Node, known: dict[fx.Node, Tensor]) -> Made | None:
    bias: Any = None
    if node.target is F.linear:
        at = _arguments(node, ("input", "weight"), {"bias": None})
        x, weight, bias, turned = at["input"], at["weight"], at["bias"], False
    elif node.target in _PRODUCTS and len(node.args) == 2 and not node.kwargs:
        (x, weight), turned = node.args, True
    elif node.target in (torch.addmm, "addmm") and len(node.args) == 3 and not node.kwargs:
        (bias, x, weight), turned = node.args, True
    else:
        return None
    if not _fits(node, x, weight, bias, known) or known[weight].ndim != 2:
        return None
    w = known[weight].T.contiguous() if turned else known[weight]
    b = None if bias is None else known[bias]
    if b is not None and b.shape != w.shape[:1]:
        return None
    return x, _fill(nn.Linear(w.shape[1], w.shape[0], b is not None), w, b)


def _layer_norm(node: fx.Node, known: dict[fx.Node, Tensor]) -> Made | None:
    if node.target not in (F.layer_norm, torch.layer_norm):
        return None
    options = {"weight": None, "bias": None, "eps": 1e-5}
    at = _arguments(node, ("input", "normalized_shape"), options)
    x, shape, weight, bias = at["input"], at["normalized_shape"], at["weight"], at["bias"]
    extra = set(at) != {"input", "normalized_shape", *options}
    if extra or not _fits(node, x, weight, bias, known):
        return None
    layer = nn.LayerNorm(tuple(shape), at["eps"], bias=bias is not None)
    return x, _fill(layer, known[weight], None if bias is None else known[bias])


_MAKERS: tuple[Callable[[fx.Node, dict[fx.Node, Tensor]], Made | None], ...] = (
    _conv,
    _linear,
    _layer_norm,
)

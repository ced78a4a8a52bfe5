# SPDX-License-Identifier: Apache-2.0
"""Layers that a network writes as functions of its parameters, as modules of the trace.

`F.conv2d(x, self.w, self.b)`, `F.conv_transpose2d`, `F.linear`, `F.layer_norm`, `F.group_norm`,
`torch.addmm` and products `x @ self.w` become calls of the modules that do the same, so that
everything after the trace knows one form of a layer. Parameters may be transposed or reshaped on
the way. Calls with arguments that such a module does not have are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import arguments_of, operator_of
from ternary_ops.graph.torch_ops import TorchOp

Made = tuple[fx.Node, nn.Module]  # the input and the layer
Known = dict[fx.Node, Tensor]  # values of parameters, and of functions of one of them


def name_layers_(traced: fx.GraphModule) -> None:
    """Replace such calls in the trace, in place."""
    known = _constants(traced)
    for node in list(traced.graph.nodes):
        if node in known or node.op not in ("call_function", "call_method"):
            continue
        op = operator_of(node)
        make = None if op is None else _MAKERS.get(op)
        made = None if op is None or make is None else make(node, op, known)
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


def _constants(traced: fx.GraphModule) -> Known:
    """Values of parameters and buffers, and of functions of one of them."""
    found: Known = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value: Any = traced
            for part in str(node.target).split("."):
                value = getattr(value, part)
        elif node.op == "call_method" and _turns(node):
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
    return whole and not str(node.target).endswith("_")


def _owner(node: fx.Node, known: Known) -> str:
    """The parameter's name, for people."""
    weight = next(n for n in node.all_input_nodes if n in known)
    while weight.op != "get_attr":
        weight = weight.all_input_nodes[0]
    return str(weight.target).replace(".", "_")


def _fits(node: fx.Node, x: Any, weight: Any, bias: Any, known: Known) -> bool:
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


def _conv(node: fx.Node, op: TorchOp, known: Known) -> Made | None:
    at = arguments_of(node, op)
    if at is None:
        return None
    x, weight, bias = at.pop("input"), at.pop("weight"), at.pop("bias")
    if not _fits(node, x, weight, bias, known):
        return None
    w = known[weight]
    inner, outer = w.shape[0], w.shape[1] * at["groups"]
    channels = (inner, outer) if op is torch_ops.CONV_TRANSPOSE2D else (outer, inner)
    kind: Any = op.modules[0]
    layer = kind(*channels, tuple(w.shape[2:]), bias=bias is not None, **at)
    return x, _fill(layer, w, None if bias is None else known[bias])


def _linear(node: fx.Node, op: TorchOp, known: Known) -> Made | None:
    bias: Any = None
    at = arguments_of(node, op)
    if op is torch_ops.LINEAR and at is not None:
        x, weight, bias, turned = at["input"], at["weight"], at["bias"], False
    elif op is torch_ops.MATMUL and len(node.args) == 2 and not node.kwargs:
        (x, weight), turned = node.args, True
    elif op is torch_ops.ADDMM and len(node.args) == 3 and not node.kwargs:
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


def _norm(node: fx.Node, op: TorchOp, known: Known) -> Made | None:
    at = arguments_of(node, op)
    if at is None or not _fits(node, at["input"], at["weight"], at["bias"], known):
        return None
    weight, bias = known[at["weight"]], None if at["bias"] is None else known[at["bias"]]
    layer: nn.Module
    if op is torch_ops.GROUP_NORM:
        layer = nn.GroupNorm(at["num_groups"], len(weight), at["eps"])
    else:
        shape = tuple(at["normalized_shape"])
        layer = nn.LayerNorm(shape, at["eps"], bias=bias is not None)
    return at["input"], _fill(layer, weight, bias)


_MAKERS: dict[TorchOp, Callable[[fx.Node, TorchOp, Known], Made | None]] = {
    torch_ops.CONV2D: _conv,
    torch_ops.CONV_TRANSPOSE2D: _conv,
    torch_ops.LINEAR: _linear,
    torch_ops.MATMUL: _linear,
    torch_ops.ADDMM: _linear,
    torch_ops.LAYER_NORM: _norm,
    torch_ops.GROUP_NORM: _norm,
}

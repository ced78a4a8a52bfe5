# SPDX-License-Identifier: Apache-2.0
"""Functional calls with a quantized layer's own weight: found in a network's code, and in a trace.

`nn.function_calls` has what such a call is; in the network's own forward and in its trace it is
the same one call of the layer, so that training, calibrate and compile agree.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

import ternary_ops.nn as tnn
from ternary_ops.graph import torch_ops
from ternary_ops.graph.constants import attribute_of
from ternary_ops.graph.nodes import from_torch, names_used, operator_of
from ternary_ops.graph.torch_op import TorchOp
from ternary_ops.nn.function_calls import arguments, computes, send_calls_

_FUNCTIONS: dict[TorchOp | None, Callable[..., Any]] = {
    torch_ops.LINEAR: F.linear,
    torch_ops.CONV2D: F.conv2d,
}


def send_function_calls_(model: nn.Module) -> None:
    """Make functional calls with quantized layers' weights calls of the layers, in place, wherever
    the code of a module reads `weight` of layers that it holds.
    """
    for module in list(model.modules()):
        if layers := list(_read_by(module)):
            send_calls_(module, layers)


def _read_by(module: nn.Module) -> Iterator[tnn.TernaryLayer]:
    """Quantized layers whose weight the forward of `module` may read: it names all of both."""
    if from_torch(type(module)):
        return
    names = names_used(type(module))  # type: ignore[arg-type]
    if "weight" not in names:
        return
    for path, layer in module.named_modules():
        if path and isinstance(layer, tnn.TernaryLayer):
            if all(part in names or part.isdigit() for part in path.split(".")):
                yield layer


def call_layers_(traced: fx.GraphModule) -> None:
    """Replace such calls in a trace by calls of the layers, in place; another bias than the layer's
    own is added to what the layer makes.
    """
    for node in list(traced.graph.nodes):
        function = None if node.op == "call_module" else _FUNCTIONS.get(operator_of(node))
        if function is None:
            continue
        given = arguments(function, node.args, node.kwargs)
        weight = given["weight"]
        if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
            continue
        path, _, name = str(weight.target).rpartition(".")
        layer = attribute_of(traced, path) if path else traced
        if not (isinstance(layer, tnn.TernaryLayer) and layer.by_function):
            continue
        if name == "weight" and computes(layer, given):
            _call(traced, node, path, given)


def _call(traced: fx.GraphModule, node: fx.Node, path: str, given: dict[str, Any]) -> None:
    graph, layer, bias = traced.graph, attribute_of(traced, path), given["bias"]
    own = f"{path}.bias"
    with graph.inserting_before(node):
        made = [graph.call_module(path, (given["input"],))]
        if isinstance(bias, fx.Node) and bias.op == "get_attr" and bias.target == own:
            bias = None
        elif layer.bias is not None:
            made.append(graph.get_attr(own))
            change = (
                (operator.neg, (made[-1],)) if bias is None else (operator.sub, (bias, made[-1]))
            )
            made.append(bias := graph.call_function(*change))
        if bias is not None:
            if isinstance(layer, tnn.TernaryConv2d):
                made.append(bias := graph.call_method("view", (bias, -1, 1, 1)))
            made.append(graph.call_function(operator.add, (made[0], bias)))
    for part in made:
        part.meta = dict(node.meta)
    node.replace_all_uses_with(made[-1])
    graph.erase_node(node)
    for part in (given["weight"], given["bias"]):  # by hand: writes into tensors count as dead code
        if isinstance(part, fx.Node) and part.op == "get_attr" and not part.users:
            graph.erase_node(part)

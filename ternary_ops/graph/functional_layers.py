# SPDX-License-Identifier: Apache-2.0
"""Layers that a network writes as functions of its parameters, as modules of the trace.

`F.conv2d(x, self.w, self.b)`, `F.conv_transpose2d`, `F.linear`, `F.batch_norm`, `F.layer_norm`,
`F.group_norm`, `torch.addmm` and products `x @ self.w` become calls of the modules that do the
same, so that everything after the trace knows one form of a layer. Parameters may be computed from
each other on the way (`graph.constants`). Calls with arguments that such a module does not have are
left alone.

Such a layer has the name of the subclass whose forward calls the function (a BatchNorm2d with an
activation), otherwise one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from ternary_ops.graph import torch_ops
from ternary_ops.graph.constants import Known, attribute_of, constants_of, fold_constants_
from ternary_ops.graph.nodes import arguments_of, operator_of, parent_of
from ternary_ops.graph.torch_op import TorchOp

READ = "read"  # in the meta of a trace: tensors that its code reads itself, id -> who does
COMPUTED = "computed"  # in the meta of a trace: ids of parameters that are none of the model's
Made = tuple[fx.Node, nn.Module]  # the input and the layer


@dataclass
class _Layer:
    """A layer, its calls, the paths of what it is made of, and its name without an owner."""

    module: Any
    read: list[str]
    name: str
    calls: list[fx.Node] = field(default_factory=list)


def name_layers_(traced: fx.GraphModule, model: nn.Module) -> None:
    """Replace such calls in the trace of `model`, in place, and fold other constants."""
    known = constants_of(traced)
    read = dict(_reads(traced, known))
    layers: dict[str, _Layer] = {}
    for node in list(traced.graph.nodes):
        if node in known or node.op not in ("call_function", "call_method"):
            continue
        op = operator_of(node)
        make = None if op is None else _MAKERS.get(op)
        made = None if op is None or make is None else make(node, op, known)
        if made is None:
            continue
        x, module = made
        paths = list(
            dict.fromkeys(p for n in node.all_input_nodes if n in known for p in _paths(n))
        )
        name = f"{node.name}_of_{paths[0].replace('.', '_')}"
        layer = layers.setdefault(_text(node, x, known), _Layer(module.eval(), paths, name))
        traced.add_submodule(layer.name, layer.module)
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(layer.name, (x,))
        call.meta = dict(node.meta)
        layer.calls.append(call)
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
    fold_constants_(traced, known)
    traced.graph.eliminate_dead_code()
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    for layer in layers.values():
        _put(traced, model, layer, read, own)
    traced.meta[READ] = read
    traced.meta[COMPUTED] = {
        id(p) for layer in layers.values() for p in layer.module.parameters() if id(p) not in own
    }
    traced.graph.lint()
    traced.recompile()


def _reads(traced: fx.GraphModule, known: Known) -> Iterator[tuple[int, str]]:
    """Every tensor that the code reads, and the function or method that does."""
    for node in traced.graph.nodes:
        if node.op == "get_attr" and node.users:
            target = next(iter(node.users)).target
            yield id(known[node]), f"{getattr(target, '__name__', target)}()"


def _paths(node: fx.Node) -> list[str]:
    """Paths of the tensors that a constant is computed from."""
    if node.op == "get_attr":
        return [str(node.target)]
    return [path for part in node.all_input_nodes for path in _paths(part)]


def _text(node: fx.Node, x: fx.Node, known: Known) -> str:
    """A call without its input: two of one text are one layer."""

    def text(n: fx.Node) -> Any:
        if n is x or n not in known:
            return "input"
        return str(n.target) if n.op == "get_attr" else _text(n, x, known)

    args = fx.node.map_arg((node.args, dict(node.kwargs)), text)
    return f"{getattr(node.target, '__name__', node.target)}{args!r}"


def _put(
    traced: fx.GraphModule, model: nn.Module, layer: _Layer, read: dict[int, str], own: set[int]
) -> None:
    """Give a layer its place in the trace: that of the subclass whose forward it was, or a new one.

    There it shares the subclass's parameters, which nothing else reads then; in a new place it has
    its own.
    """
    (owner, *others) = {path.rpartition(".")[0] for path in layer.read}
    nodes = traced.graph.nodes
    taken = {str(n.target) for n in nodes if n.op == "call_module"}
    taken |= {str(n.target).rpartition(".")[0] for n in nodes if n.op == "get_attr"}
    module = layer.module
    if others or not owner or owner in taken or not _is_parent(model.get_submodule(owner), module):
        for name, parameter in module._parameters.items():
            if id(parameter) in own:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
        return
    for name, part in traced.get_submodule(owner)._modules.items():
        module._modules.setdefault(name, part)
    traced.delete_submodule(layer.name)
    traced.set_submodule(owner, module)
    for node in layer.calls:
        node.target = owner
    for path in layer.read:
        read.pop(id(attribute_of(model, path)), None)


def _is_parent(owner: nn.Module, layer: Any) -> bool:
    """True for a module that subclasses the layer's class; of several BatchNorms the layer becomes
    the one that it subclasses.
    """
    parent = parent_of(owner)
    if {type(layer), parent} <= set(torch_ops.BATCH_NORM.modules):
        layer.__class__ = parent
    return type(layer) is parent


def _fits(node: fx.Node, x: Any, weight: Any, bias: Any, known: Known) -> bool:
    """Is x traced, are weight and bias (perhaps none) parameters, and is all else constant?"""
    parameters = [weight] if bias is None else [weight, bias]
    traced = isinstance(x, fx.Node) and x not in known
    given = all(isinstance(p, fx.Node) and p in known for p in parameters)
    return traced and given and set(node.all_input_nodes) <= {x, *parameters}


def _fill(layer: Any, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    layer.weight = None if weight is None else _parameter(weight)
    layer.bias = None if bias is None else _parameter(bias)
    filled: nn.Module = layer
    return filled


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value)


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
    w = known[weight].detach().T.contiguous() if turned else known[weight]
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


def _batchnorm(node: fx.Node, op: TorchOp, known: Known) -> Made | None:
    """With the running statistics: others are those of the batch, of which no layer is made."""
    at = arguments_of(node, op)
    if at is None or at["training"] is not False:
        return None
    x, parts = at["input"], [at[n] for n in ("running_mean", "running_var", "weight", "bias")]
    if not all(p is None or p in known for p in parts) or None in parts[:2] or x in known:
        return None
    mean: Any
    mean, var, weight, bias = (known.get(p) for p in parts)
    layer = nn.BatchNorm2d(mean.numel(), at["eps"], affine=False)
    layer.running_mean, layer.running_var, layer.affine = mean, var, weight is not None
    return x, _fill(layer, weight, bias)


_MAKERS: dict[TorchOp, Callable[[fx.Node, TorchOp, Known], Made | None]] = {
    torch_ops.CONV2D: _conv,
    torch_ops.CONV1D: _conv,
    torch_ops.CONV_TRANSPOSE2D: _conv,
    torch_ops.LINEAR: _linear,
    torch_ops.MATMUL: _linear,
    torch_ops.ADDMM: _linear,
    torch_ops.BATCH_NORM: _batchnorm,
    torch_ops.LAYER_NORM: _norm,
    torch_ops.GROUP_NORM: _norm,
}

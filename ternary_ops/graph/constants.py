# SPDX-License-Identifier: Apache-2.0
"""Constant folding: what a trace computes from parameters, buffers and constants alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ternary_ops.graph.inplace import works_in_place
from ternary_ops.graph.nodes import module_of

FOLDED = "constant_"  # begins the names of values that were computed here
_REPEATS = ("expand", "expand_as", "repeat", "broadcast_to", "tile")
Known = dict[fx.Node, Any]  # the values of nodes that do not depend on the input


@torch.no_grad()
def constants_of(traced: fx.GraphModule) -> Known:
    """Values of parameters and buffers, and of every function of them; random ones are left out.

    What the code writes into a constant of its own, not a parameter, is done here and leaves the
    trace.
    """
    found: Known = {}
    writes: list[fx.Node] = []
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            found[node] = attribute_of(traced, str(node.target))
        elif node.op in ("call_function", "call_method", "call_module") and node.all_input_nodes:
            module = module_of(node)
            if not set(node.all_input_nodes) <= set(found):
                continue
            if not works_in_place(node, module):
                _evaluate(node, module, found)
            elif _owns(node, found):
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), found.__getitem__)
                found[node] = _call(node.target if module is None else module, args, kwargs)
                writes.append(node)
    for node in writes:
        if not node.users:
            traced.graph.erase_node(node)
            del found[node]
    return found


def _owns(write: fx.Node, found: Known) -> bool:
    """True for a write into a constant that is no tensor of the network's, and that no traced call
    reads before.
    """
    (place, *_) = write.all_input_nodes
    memory = _memory(found[place])
    if memory is None:
        return False
    for node, value in found.items():
        if _memory(value) == memory and (
            node.op == "get_attr" or any(u not in found and u < write for u in node.users)
        ):
            return False
    return True


def _memory(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def _evaluate(node: fx.Node, module: nn.Module | None, found: Known) -> None:
    """Add the node's value, unless two calls differ or one fails."""
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), found.__getitem__)
    target = node.target if module is None else module
    try:
        first, second = _call(target, args, kwargs), _call(target, args, kwargs)
    except Exception:  # the model's own functions run here; the trace will meet the same error
        return
    if isinstance(first, Tensor):
        if not (isinstance(second, Tensor) and torch.equal(first, second)):
            return
        first = first.detach()
    found[node] = first


def _call(target: Any, args: Any, kwargs: Any) -> Any:
    if callable(target):
        return target(*args, **kwargs)
    return getattr(args[0], target)(*args[1:], **kwargs)


def attribute_of(root: Any, path: str) -> Any:
    """The value at a dotted path of attributes."""
    for part in path.split("."):
        root = getattr(root, part)
    return root


def fold_constants_(traced: fx.GraphModule, known: Known) -> None:
    """Replace every such value that something else reads by a buffer of the trace, and numbers
    (tensors without axes too) by themselves, in place.

    Repetitions stay calls: who reads them sees that they are the same for every image of a batch.
    """
    inside = set(known)
    for node in reversed(known):
        if _name(node) in _REPEATS and not inside.issuperset(node.users):
            inside.discard(node)
    for node, value in known.items():
        if node not in inside:
            continue
        outside = [user for user in node.users if user not in inside]
        if isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():
            value = float(value)
        elif node.op == "get_attr":
            continue
        if isinstance(value, Tensor):
            name = f"{FOLDED}{node.name}"
            traced.register_buffer(name, value, persistent=False)
            with traced.graph.inserting_before(node):
                made: Any = traced.graph.get_attr(name)
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
        elif isinstance(value, (int, float, tuple, str, type(None), torch.dtype, torch.device)):
            for user in outside:
                _write(user, node, value)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _write(user: fx.Node, node: fx.Node, value: Any) -> None:
    """Put a constant in the place of a node among the arguments of another."""
    if isinstance(value, torch.Size):
        value = tuple(value)
    user.args, user.kwargs = fx.node.map_arg(
        (user.args, dict(user.kwargs)), lambda n: value if n is node else n
    )

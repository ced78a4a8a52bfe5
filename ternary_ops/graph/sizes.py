# SPDX-License-Identifier: Apache-2.0
"""Size comparisons in a traced network: numbers of channels and axes are fixed, others free."""

from __future__ import annotations

import operator

import torch
from torch import fx

from ternary_ops.graph.nodes import is_size


def decide_check(node: fx.Node) -> bool | None:
    """The outcome of comparing a number of channels or axes with a constant; None for other values.

    Networks check their input so ("expected 3 channels"), and a program is made for one number of
    both: the check is taken to pass. Whoever runs the trace on an example notices otherwise.
    """
    if node.op != "call_function" or node.target not in (operator.eq, operator.ne):
        return None
    sizes = [a for a in node.args if isinstance(a, fx.Node)]
    numbers = [a for a in node.args if type(a) is int]
    if len(sizes) != 1 or len(numbers) != 1 or not (_is_channels(sizes[0]) or _is_rank(sizes[0])):
        return None
    return node.target is operator.eq


def _is_rank(node: fx.Node) -> bool:
    """x.dim() or x.ndim."""
    if node.op == "call_method":
        return node.target == "dim"
    return node.target is getattr and node.args[1] == "ndim"


def _is_channels(node: fx.Node) -> bool:
    """x.shape[1] or x.size(1)."""
    if node.op == "call_method" and node.target == "size":
        return tuple(node.args[1:]) == (1,)
    shape = node.args[0] if node.target is operator.getitem and node.args[1:] == (1,) else None
    return isinstance(shape, fx.Node) and _is_shape(shape)


_OF_SIZES = (
    operator.getitem,
    operator.mod,
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
)


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and node.args[1] == "shape"


def drop_asserts(graph: fx.Graph) -> None:
    """Remove checks by torch._assert, which the network passes wherever it runs."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)


def drop_unused_sizes(graph: fx.Graph) -> None:
    """Remove sizes, and comparisons of them, that nothing reads: they are no users of a value."""
    for node in reversed(list(graph.nodes)):
        if not node.users and (is_size(node) or node.target in _OF_SIZES):
            graph.erase_node(node)

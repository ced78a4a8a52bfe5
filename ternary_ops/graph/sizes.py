# SPDX-License-Identifier: Apache-2.0
"""Size comparisons in a traced network: the channel count is fixed, other sizes are free."""

from __future__ import annotations

import operator

from torch import fx


def decide_channels(node: fx.Node) -> bool | None:
    """The outcome of comparing a number of channels with a constant; None for other values.

    Networks check their input so ("expected 3 channels"), and a program is made for one number of
    channels: the check is taken to pass. Whoever runs the trace on an example notices otherwise.
    """
    if node.op != "call_function" or node.target not in (operator.eq, operator.ne):
        return None
    sizes = [a for a in node.args if isinstance(a, fx.Node)]
    numbers = [a for a in node.args if type(a) is int]
    if len(sizes) != 1 or len(numbers) != 1 or not _is_channels(sizes[0]):
        return None
    return node.target is operator.eq


def _is_channels(node: fx.Node) -> bool:
    """x.shape[1] or x.size(1)."""
    if node.op == "call_method" and node.target == "size":
        return tuple(node.args[1:]) == (1,)
    shape = node.args[0] if node.target is operator.getitem and node.args[1:] == (1,) else None
    return isinstance(shape, fx.Node) and _is_shape(shape)


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and node.args[1] == "shape"


def drop_unused_sizes(graph: fx.Graph) -> None:
    """Remove sizes, and comparisons of them, that nothing reads: they are no users of a value."""
    compared = (operator.eq, operator.ne, operator.getitem)
    for node in reversed(list(graph.nodes)):
        if node.users:
            continue
        if _is_shape(node) or _is_channels(node) or node.target in compared:
            graph.erase_node(node)

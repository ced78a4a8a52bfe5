# SPDX-License-Identifier: Apache-2.0
"""The channel groups of a program: what each operator ties.

Values are named by their number, layers by that of their weight. A flattened image has as many
channels as the image: each stands for its pixels. "order" is fixed wherever another one would
change bits: floats are summed in the order of the channels.
"""

from __future__ import annotations

from ternary_ops.layout.channel_groups import ChannelGroups
from ternary_ops.program.graph import Graph
from ternary_ops.program.operator import Value


def channel_groups(graph: Graph) -> ChannelGroups:
    """Read a program."""
    groups = ChannelGroups()
    by_weight: dict[int, int] = {}
    for i, (node, value) in enumerate(zip(graph.nodes, graph.values, strict=True)):
        groups.add(i, value.multiple)
        if node.operator.is_layer:
            _layer(groups, graph, i, by_weight)
        elif node.operator.per_channel:
            for x in node.inputs:  # the one whose size a resize takes, too
                _meet(groups, graph, i, x)
        elif node.operator.over_channels:
            _normalize(groups, graph, i)
        elif node.inputs:
            _move(groups, graph, i)
    groups.fix(0, "the input of the program")
    groups.fix(len(graph.nodes) - 1, "the output of the program")
    return groups


def _meet(groups: ChannelGroups, graph: Graph, i: int, x: int) -> None:
    """An operand of a value, channel by channel, or one channel that meets all."""
    if graph.values[x].channels != 1 or graph.values[i].channels == 1:
        _tie(groups, i, x)
        return
    groups.fix(x, "one channel that meets all of another value")
    groups.fix(i, "a value of one channel meets these", "removal", "scale")


def _layer(groups: ChannelGroups, graph: Graph, i: int, by_weight: dict[int, int]) -> None:
    node = graph.nodes[i]
    x, *others = node.inputs
    index, parts = node.attrs["w"], node.attrs.get("groups", 1)
    o, _, _, width = graph.weights[index].shape
    for other in others:
        _tie(groups, i, other)
    if parts > 1 and width == 1 and o == parts:
        _tie(groups, i, x)
        groups.use(index, "vector", i, parts)
    else:
        groups.use(index, "consumer", x, parts)
        groups.use(index, "producer", i, parts)
        if parts > 1:
            groups.split(i, parts)
            groups.split(x, parts)
    value = graph.values[x]
    if value.y is None:
        groups.fix(x, "a layer sums floats in this order", "order")
    if not _plain(value):
        groups.fix(x, "a flattened image added to a row")
    twin = by_weight.setdefault(index, i)
    if twin != i:  # one filter bank, read in one order and written in one
        _tie(groups, x, graph.nodes[twin].inputs[0])
        _tie(groups, i, twin)


def _normalize(groups: ChannelGroups, graph: Graph, i: int) -> None:
    node = graph.nodes[i]
    (x,) = node.inputs
    _tie(groups, i, x)
    groups.fix(x, f"{node.op} sums floats in this order", "order")
    groups.fix(x, f"{node.op} is taken over these channels", "removal", "scale")
    if "w" in node.attrs:
        groups.use(node.attrs["w"], "vector", i)


def _move(groups: ChannelGroups, graph: Graph, i: int) -> None:
    """Operators that put channels elsewhere; what any other one reads and makes is fixed."""
    node = graph.nodes[i]
    around = (i, *node.inputs)
    if all(graph.values[j].channels == graph.values[j].multiple for j in around):
        pairs = node.operator.channel_pairs(graph.bound(node))
        if pairs is not None:
            for x, (made, read) in zip(node.inputs, pairs, strict=True):
                groups.tie(i, x, read, made)
            return
    for j in around:
        groups.fix(j, f"{node.op} does not work channel by channel")


def _plain(value: Value) -> bool:
    return value.channels in (None, value.multiple)


def _tie(groups: ChannelGroups, a: int, b: int) -> None:
    if groups.width(a) == groups.width(b):
        groups.tie(a, b)
        return
    for i in (a, b):
        groups.fix(i, "a flattened image beside a row")

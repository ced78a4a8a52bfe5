# SPDX-License-Identifier: Apache-2.0
"""Reorder the channels of a program's values so that zero weights fall into fewer quads.

The kernels skip quads, four consecutive input channels of one tap. Which channels are consecutive
is free: a permutation of a value's channels is one of the filters that make it and of the input
channels of those that read it. `channels` says which values share one order. The ends of the
program keep theirs, so do values that layers read as floats (their sums would be rounded in another
order): every result keeps its bits. Quads of one order do not depend on another order, so each is
searched alone (`column_grouping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ternary_ops.layout.channel_groups import ChannelGroup, ChannelGroups
from ternary_ops.program import column_grouping
from ternary_ops.program.channels import channel_groups
from ternary_ops.program.graph import Graph
from ternary_ops.program.shapes import infer_from, sizes_of
from ternary_ops.program.weight import Array, Weight
from ternary_ops.table import Table


@dataclass(frozen=True)
class Occupied:
    """Effect of `permute` on one layer: nonzero quads before and after, of `quads`; `pixels` is how
    often each is computed for one image.
    """

    name: str
    quads: int
    before: int
    after: int
    pixels: int


@dataclass(frozen=True)
class PermuteReport:
    """Every layer whose input is quantized, in the order of the program. str() is a table."""

    rows: tuple[Occupied, ...]

    @property
    def before(self) -> int:
        """Nonzero quads times output pixels, over all layers, before."""
        return sum(row.before * row.pixels for row in self.rows)

    @property
    def after(self) -> int:
        """Nonzero quads times output pixels, over all layers, after: never more than before."""
        return sum(row.after * row.pixels for row in self.rows)

    def __str__(self) -> str:
        """One line per layer, the fractions of nonzero quads, and the totals."""
        cells = [
            (
                row.name,
                f"{row.quads:,}",
                str(row.pixels),
                *_shares(row.before, row.after, row.quads),
            )
            for row in self.rows
        ]
        work = sum(row.quads * row.pixels for row in self.rows)
        total = ("all, by pixels", f"{work:,}", "", *_shares(self.before, self.after, work))
        return str(Table(("layer", "quads", "pixels", "before", "after"), [*cells, total]))


def permute(graph: Graph, sample: Sequence[int]) -> tuple[Graph, PermuteReport]:
    """Reorder a program's inner channels so that fewer quads are nonzero; returns it and a report.

    sample: the input shape, [N, C, H, W] or [N, K], whose image size weights the layers. Outputs
    keep their bits; inner values are the same numbers in the new order. The number of nonzero
    quads, weighted by output pixels, never grows. Deterministic.

    Raises UnsupportedShape for a sample that the program does not take.
    """
    shapes = infer_from(graph, sample)
    pixels = [int(np.prod(sizes_of(shape))) for shape in shapes]
    weights = list(graph.weights)
    readers = _readers(graph)
    for group in movable_groups(graph, channel_groups(graph)):
        seen = [i for i in readers if graph.nodes[i].inputs[0] in group.positions]
        layers = [(weights[graph.nodes[i].attrs["w"]], pixels[i]) for i in seen]
        order = _search(layers, group.labels)
        if order is not None:
            apply_order(group, order, weights)
    made = replace(graph, weights=tuple(weights))
    return made, _report(graph, made, readers, pixels)


def _shares(before: int, after: int, of: int) -> tuple[str, str]:
    return f"{before / max(of, 1):.1%}", f"{after / max(of, 1):.1%}"


def _report(old: Graph, new: Graph, readers: Sequence[int], pixels: Sequence[int]) -> PermuteReport:
    rows = []
    for i in readers:
        before, after = old.weight(old.nodes[i]), new.weight(new.nodes[i])
        counts = _quads(before), _occupied(before), _occupied(after)
        rows.append(Occupied(before.name, *counts, pixels[i]))
    return PermuteReport(tuple(rows))


def _quads(w: Weight) -> int:
    o, r, s, width = w.shape
    return o * r * s * -(-width // column_grouping.QUAD)


def _occupied(w: Weight) -> int:
    return round(w.density * _quads(w))


def _readers(graph: Graph) -> list[int]:
    """Layers that multiply integers by integers: the ones that skip quads."""
    return [
        i
        for i, node in enumerate(graph.nodes)
        if node.operator.is_layer and graph.values[node.inputs[0]].y is not None
    ]


def movable_groups(graph: Graph, groups: ChannelGroups) -> list[ChannelGroup]:
    """The groups whose order of channels is free and has any choice."""
    for i, node in enumerate(graph.nodes):
        operator = node.operator
        if not (operator.per_channel or operator.is_layer):
            for value in (i, *node.inputs):
                groups.fix(value, f"{node.op} finds its channels by their place", "order")
        elif node.attrs.get("groups", 1) > 1:
            width = graph.weight(node).shape[3]
            if width > 1 and width % column_grouping.QUAD:
                reason = "quads cross the borders of a grouped convolution"
                groups.fix(node.inputs[0], reason, "order")
    return [
        group
        for group in groups.groups()
        if "order" not in group.fixed
        and group.whole
        and len(np.unique(group.labels)) < len(group.labels)
    ]


def _search(layers: Sequence[tuple[Weight, int]], labels: Array) -> Array | None:
    """The order of channels that these layers (and their pixels) like best; None: as it is."""
    blocks, row_weights = [], []
    for w, count in layers:
        mask = by_channel(w.array != 0, len(labels))
        if mask is not None:
            blocks.append(mask)
            row_weights.append(np.full(len(mask), float(count)))
    if not blocks:
        return None
    order = column_grouping.best_order(
        np.concatenate(blocks), np.concatenate(row_weights), list(labels)
    )
    # The search leaves out flattened images: their losses are counted here.
    before, after = (
        sum(_occupied(_reordered(w, choice)) * count for w, count in layers)
        for choice in (np.arange(len(labels)), order)
    )
    return order if after < before else None


def by_channel(array: Array, channels: int) -> Any:
    """[O, R, S, I] as [rows, channels]; grouped filters stand in their group's columns.

    None where a row holds no channel of its own to exchange, or a flattened image.
    """
    width = array.shape[3]
    if width > channels or channels % width or width == 1:
        return None
    groups = channels // width
    parts = array.reshape(groups, -1, width)
    rows = np.zeros((groups, parts.shape[1], groups, width), array.dtype)
    at = np.arange(groups)
    rows[at, :, at] = parts
    return rows.reshape(-1, channels)


def _reordered(w: Weight, order: Array) -> Weight:
    """Input channels of a layer in a new order of the value it reads."""
    o, r, s, width = w.shape
    channels = len(order)
    if width == channels:
        return replace(w, values=w.array[..., order])
    if width > channels:  # [O, 1, 1, C * H * W] of a flattened image
        split = w.array.reshape(o, channels, -1)
        return replace(w, values=split[:, order].reshape(w.shape))
    local = order.reshape(-1, width) % width  # groups stay in place
    return replace(w, values=np.take_along_axis(w.array, _per_filter(local, o), axis=3))


def _per_filter(local: Array, o: int) -> Array:
    return np.repeat(local, o // len(local), axis=0)[:, None, None, :]


def _rewritten(w: Weight, order: Array) -> Weight:
    """Filters in a new order of the value they make."""
    vectors = {
        key: value[order]
        for key in ("scale", "bias", "slope")
        if (value := getattr(w, key)) is not None and len(value) == len(order)
    }
    return replace(w, values=w.array[order], **vectors)


def apply_order(group: ChannelGroup, order: Array, weights: list[Weight]) -> None:
    """Reorder every filter bank that reads or makes channels of the group, once each."""
    read = {use.owner: use.value for use in group.consumers}
    made = {use.owner: use.value for use in (*group.producers, *group.vectors)}
    for i, w in enumerate(weights):
        if i in read:
            w = _reordered(w, group.order_of(read[i], order))
        if i in made:
            w = _rewritten(w, group.order_of(made[i], order))
        weights[i] = w

# SPDX-License-Identifier: Apache-2.0
"""Reorder the channels of a program's values so that zero weights fall into fewer quads.

The kernels skip quads, four consecutive input channels of one tap. Which channels are consecutive
is free: a permutation of a value's channels is one of the filters that make it and of the input
channels of those that read it. Values that an add, a pool or a depthwise convolution ties together
share one order. The ends of the program keep theirs, so do values that layers read as floats (their
sums would be rounded in another order): every result keeps its bits. Quads of one order do not
depend on another order, so each is searched alone (`grouping`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ternary_ops.program import column_grouping
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.shapes import infer_from, sizes_of
from ternary_ops.program.weight import Array, Weight
from ternary_ops.table import Table

# Ops that work on each channel alone, and the same way. Any other op pins what it reads and makes.
_PER_CHANNEL = frozenset(
    {
        "activation",
        "quantize",
        "dequantize",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "add",
        "clamp",
        "flatten",
        "mul",
        "resize",
    }
)
_LAYERS = ("conv2d", "linear")


@dataclass(frozen=True)
class Occupied:
    """What `permute` did to one layer: occupied quads before and after, of `quads`; `pixels` is how
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
        """Occupied quads times output pixels, over all layers, before."""
        return sum(row.before * row.pixels for row in self.rows)

    @property
    def after(self) -> int:
        """The same, after; never more."""
        return sum(row.after * row.pixels for row in self.rows)

    def __str__(self) -> str:
        """One line per layer, the shares of occupied quads, and the totals."""
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
    """The same program with its inner channels in another order, and what that did to the quads.

    sample is the input shape, [N, C, H, W] or [N, K], whose image size says how much each layer
    counts. Outputs are the same bits; inner values are the same numbers in the new order. Occupied
    quads, weighted by output pixels, never grow. Deterministic.

    Raises UnsupportedShape for a sample that the program does not take.
    """
    shapes = infer_from(graph, sample)
    pixels = [int(np.prod(sizes_of(shape))) for shape in shapes]
    spaces = Spaces(graph)
    weights = list(graph.weights)
    readers = _readers(graph)
    for root, labels in spaces.free().items():
        seen = [i for i in readers if spaces.root(graph.nodes[i].inputs[0]) == root]
        order = _search([(weights[graph.nodes[i].attrs["w"]], pixels[i]) for i in seen], labels)
        if order is not None:
            apply_order(graph, spaces, root, order, weights)
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
        if node.op in _LAYERS and graph.values[node.inputs[0]].y is not None
    ]


def _groups(node: Node) -> int:
    groups: int = node.attrs.get("groups", 1)
    return groups


@dataclass
class Spaces:
    """Which values share an order of channels, and what that order may be.

    labels: per root, [C]; only channels of one label may change places.
    """

    graph: Graph
    parents: list[int] = field(default_factory=list)
    labels: dict[int, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the graph."""
        self.parents = list(range(len(self.graph.nodes)))
        self.labels = {
            i: np.zeros(value.multiple, int) for i, value in enumerate(self.graph.values)
        }
        by_weight: dict[int, int] = {}
        for i, node in enumerate(self.graph.nodes):
            if node.op in _LAYERS:
                self._layer(i, node, by_weight)
            elif node.op in _PER_CHANNEL:
                for x in node.inputs:
                    self._tie(i, x)
            else:
                for x in (i, *node.inputs):
                    self.pin(x)
        self.pin(len(self.graph.nodes) - 1)

    def root(self, i: int) -> int:
        """The value that stands for all that share i's order."""
        while self.parents[i] != i:
            i = self.parents[i]
        return i

    def free(self) -> dict[int, Array]:
        """Roots whose order has any choice, and their labels."""
        roots = [i for i in range(len(self.parents)) if self.root(i) == i]
        return {
            i: self.labels[i] for i in roots if len(np.unique(self.labels[i])) < len(self.labels[i])
        }

    def _layer(self, i: int, node: Node, by_weight: dict[int, int]) -> None:
        x, *residual = node.inputs
        w, groups = self.graph.weight(node), _groups(node)
        o, _, _, width = w.shape
        for other in residual:
            self._tie(i, other)
        if groups > 1 and width == 1 and o == groups:
            self._tie(i, x)
        elif groups > 1:
            # Whole groups stay in place; quads that cross their borders are left alone.
            self._restrict(i, np.arange(o) // (o // groups))
            inner = np.arange(width * groups)
            self._restrict(x, inner // width if width % column_grouping.QUAD == 0 else inner)
        value = self.graph.values[x]
        if value.y is None or (value.channels or 0) not in (0, value.multiple):
            self.pin(x)
        twin = by_weight.setdefault(node.attrs["w"], i)
        if twin != i:  # one filter bank, read in one order and written in one
            self._tie(x, self.graph.nodes[twin].inputs[0])
            self._tie(i, twin)

    def _tie(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        if len(self.labels[a]) != len(self.labels[b]):  # a flattened image beside a row
            self.pin(a)
            self.pin(b)
            return
        self.parents[b] = a
        self._restrict(a, self.labels[b])

    def pin(self, i: int) -> None:
        """Value i keeps its order."""
        self._restrict(i, np.arange(len(self.labels[self.root(i)])))

    def _restrict(self, i: int, labels: Array) -> None:
        root = self.root(i)
        pairs = np.stack([self.labels[root], labels])
        self.labels[root] = np.unique(pairs, axis=1, return_inverse=True)[1].reshape(-1)


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
    # A flattened image is no part of the search: what it loses is counted here.
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


def apply_order(
    graph: Graph, spaces: Spaces, root: int, order: Array, weights: list[Weight]
) -> None:
    """Reorder every filter bank that reads or makes a value of the space `root`, once each."""
    read, made = set(), set()
    for i, node in enumerate(graph.nodes):
        if node.op not in _LAYERS:
            continue
        index = node.attrs["w"]
        depthwise = _groups(node) > 1 and weights[index].shape[3] == 1
        if spaces.root(node.inputs[0]) == root and not depthwise and index not in read:
            read.add(index)
            weights[index] = _reordered(weights[index], order)
        if spaces.root(i) == root and index not in made:
            made.add(index)
            weights[index] = _rewritten(weights[index], order)

# SPDX-License-Identifier: Apache-2.0
"""Along which axes of each value of a traced network its channels lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ternary_ops.layout.channel_groups import Change, ChannelGroups, Index

Dims = tuple[int, ...]


class ChannelAxes:
    """Values by their nodes; a value of several axes has its channels in row-major order.

    shapes: of every tensor. dims: of those that have channels, the axes that they lie along. moved:
    of nodes that make several tensors, the numbers of the channels in each; origins: whose they
    are.
    """

    def __init__(self) -> None:
        self.groups = ChannelGroups()
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.dims: dict[fx.Node, Dims] = {}
        self.moved: dict[fx.Node, Any] = {}
        self.origins: dict[fx.Node, list[fx.Node]] = {}
        self._first: dict[fx.Node, int] = {}  # number of a value's first channel among all
        self._count = 0

    def add(self, node: fx.Node, dims: Dims) -> None:
        """The node's value has channels along these axes; none where it has no such axes."""
        shape = self.shapes[node]
        if any(d >= len(shape) for d in dims):
            dims = ()
        width = math.prod(shape[d] for d in dims)
        self.dims[node] = dims
        self._first[node], self._count = self._count, self._count + width
        self.groups.add(node, width)

    def fix(self, nodes: Sequence[fx.Node], reason: str, *changes: Change) -> None:
        """No such change of these values' channels; by default none at all."""
        for node in nodes:
            if node in self.groups:
                self.groups.fix(node, reason, *changes)
            for other in self.origins.get(node, ()):
                self.groups.fix(other, reason, *changes)

    def aligned(self, node: fx.Node, m: fx.Node) -> Dims | None:
        """The axes of the node's value along which m's channels lie, one for one."""
        shape, other = self.shapes[node], self.shapes[m]
        if m not in self.dims or len(other) > len(shape):
            return None
        dims = tuple(d + len(shape) - len(other) for d in self.dims[m])
        equal = all(shape[d] == other[e] for d, e in zip(dims, self.dims[m], strict=True))
        return dims if equal and dims else None

    def spread(self, node: fx.Node, m: fx.Node, dims: Dims) -> int:
        """Number of elements m has along these axes of the node's value."""
        less = len(self.shapes[node]) - len(self.shapes[m])
        return math.prod(self.shapes[m][d - less] for d in dims if d >= less)

    def heads(self, m: fx.Node, rank: int) -> Dims:
        """The axes before the last two along which channels lie."""
        if len(self.shapes[m]) != rank:
            return ()
        return tuple(d for d in self.dims[m] if d < rank - 2)

    def numbers(self, m: fx.Node) -> Any:
        """The numbers of the channels that the elements of m's value belong to, of its shape."""
        if m in self.moved:
            return self.moved[m]
        shape, dims = self.shapes[m], self.dims[m]
        sizes = [shape[d] if d in dims else 1 for d in range(len(shape))]
        first = self._first[m]
        # float64: torch moves integers in fewer ways
        numbers = torch.arange(first, first + self.groups.width(m), dtype=torch.float64)
        return numbers.view(sizes).expand(shape).contiguous()

    def sources(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """The values whose channels these nodes have."""
        found = [m for node in nodes for m in ([node] if node in self.dims else self.origins[node])]
        return list(dict.fromkeys(found))

    def tie(self, node: fx.Node, sources: Sequence[fx.Node], index: Index) -> None:
        """Tie the node's channels, in number and in size, to those of these numbers."""
        for m in sources:
            mine = index - self._first[m]
            at: Index = ((mine >= 0) & (mine < self.groups.width(m))).nonzero()[0]
            self.groups.tie(node, m, mine[at], at, scale=True)

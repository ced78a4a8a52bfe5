# SPDX-License-Identifier: Apache-2.0
"""Where a trace that no single program can say is cut: into programs of one input and one output,
and islands, which may read and make any number of values.

Constants and sizes belong to no part: whoever reads one computes it, so that only tensors flow
between parts.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from ternary_ops.graph.channel_ops import kind_of
from ternary_ops.graph.nodes import is_size

Nodes = Sequence[fx.Node]


@dataclass(frozen=True)
class Region:
    """Nodes that read `start`, constants and each other, of which others read `end` alone."""

    start: fx.Node
    nodes: tuple[fx.Node, ...]
    end: fx.Node


class Flow:
    """The tensors of a trace, in order, and who reads whom.

    sources     of each tensor, the tensors it is computed from: directly, or through numbers
    sizes       of each, the tensors of which it needs the size alone
    alike       of each, the first of those that have its size by how they are made
    """

    def __init__(self, graph: fx.Graph) -> None:
        """Shapes must have been noted (`trace_check`)."""
        self.order: list[fx.Node] = []
        self.sources: dict[fx.Node, frozenset[fx.Node]] = {}
        self.sizes: dict[fx.Node, frozenset[fx.Node]] = {}
        self.users: dict[fx.Node, list[fx.Node]] = {}
        self.size_users: dict[fx.Node, list[fx.Node]] = {}
        self.alike: dict[fx.Node, fx.Node] = {}
        self.output: fx.Node
        moving: set[fx.Node] = set()  # computed from the input
        for node in graph.nodes:
            self._see(node, moving)
        self.number = {node: i for i, node in enumerate(self.order)}

    def _see(self, node: fx.Node, moving: set[fx.Node]) -> None:
        if node.op == "placeholder" or not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
        read = frozenset(n for n in node.all_input_nodes if n in self.alike)
        numbers = [n for n in node.all_input_nodes if n not in read and n in self.sources]
        sources, sizes = (frozenset(), read) if is_size(node) else (read, frozenset[fx.Node]())
        self.sources[node] = sources.union(*(self.sources[n] for n in numbers))
        self.sizes[node] = sizes.union(*(self.sizes[n] for n in numbers))
        if node.op == "output":
            (self.output,) = node.all_input_nodes
        elif node not in moving or node.meta["shape"] is None:
            return  # constants and numbers are no tensors that flow
        else:
            self.order.append(node)
            before = same_shape(node)
            self.alike[node] = self.alike.get(before, node) if before is not None else node
            self.users[node], self.size_users[node] = [], []
        for source in self.sources[node]:
            self.users[source].append(node)
        for source in self.sizes[node]:
            self.size_users[source].append(node)

    def closes(
        self, node: fx.Node, nodes: Collection[fx.Node], start: fx.Node, end: fx.Node
    ) -> bool:
        """True if nothing but `nodes` reads `node`, or its size can be had from the ends."""
        if node is end:
            return True
        sized = self.alike[node] in (self.alike[start], self.alike[end])
        return all(n in nodes for n in self.users[node]) and (
            sized or all(n in nodes for n in self.size_users[node])
        )

    def stand_in(self, node: fx.Node, among: Collection[fx.Node]) -> fx.Node:
        """`node`, or another of its size out of `among`."""
        if node in among:
            return node
        return next(n for n in self.order if n in among and self.alike[n] is self.alike[node])


def find_regions(
    flow: Flow,
    refused: Collection[fx.Node],
    fits: Callable[[fx.Node], bool],
    limits: Mapping[fx.Node, int],
) -> list[Region]:
    """Regions, as large as can be, that hold no refused node and whose ends fit, in order.

    fits: whether a program can read and make the value of a node. limits: the largest number of
    nodes of the region that starts there. A region has multiply-adds: what has none gains nothing.
    """
    taken: set[fx.Node] = set(refused)
    inner: set[fx.Node] = set()
    found: list[Region] = []
    for start in flow.order:
        if start in inner or not fits(start):
            continue
        while True:
            reached = _reached(flow, start, taken)
            limit = limits.get(start, len(flow.order))
            region = _largest(flow, start, reached, fits, limit)
            if region is None:
                break
            found.append(region)
            taken.update(region.nodes)
            inner.update(n for n in region.nodes if n is not region.end)
    return sorted(found, key=lambda region: flow.number[region.end])


def _reached(flow: Flow, start: fx.Node, taken: Collection[fx.Node]) -> list[fx.Node]:
    """All that is computed from `start` and constants alone, in order."""
    reached, sized = {start}, {n for n in flow.order if flow.alike[n] is flow.alike[start]}
    waiting = [flow.number[n] for n in flow.users[start] if n in flow.number]
    heapq.heapify(waiting)
    while waiting:
        node = flow.order[heapq.heappop(waiting)]
        if node in reached or node in taken or not flow.sources[node] <= reached:
            continue
        if not all(n in reached or n in sized for n in flow.sizes[node]):
            continue
        reached.add(node)
        for user in flow.users[node]:
            if user in flow.number:
                heapq.heappush(waiting, flow.number[user])
    return sorted(reached - {start}, key=flow.number.__getitem__)


def _largest(
    flow: Flow, start: fx.Node, reached: Nodes, fits: Callable[[fx.Node], bool], limit: int
) -> Region | None:
    """The region from `start` with the most multiply-adds, then the most nodes."""
    inside, best, most = set(reached), None, (0, 0)
    for end in reversed(reached):
        if not fits(end):
            continue
        nodes = _before(flow, end, inside)
        size = sum(node.meta["macs"] for node in nodes), len(nodes)
        closed = all(flow.closes(n, nodes, start, end) for n in nodes)
        if closed and size[0] and size > most and len(nodes) <= limit:
            best, most = Region(start, tuple(sorted(nodes, key=flow.number.__getitem__)), end), size
    return best


def _before(flow: Flow, end: fx.Node, inside: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes of `inside` that `end` is computed from, with itself."""
    found, stack = {end}, [end]
    while stack:
        node = stack.pop()
        for source in flow.sources[node] | flow.sizes[node]:
            if source in inside and source not in found:
                found.add(source)
                stack.append(source)
    return found


def reads_of(flow: Flow, node: fx.Node, inner: Collection[fx.Node]) -> set[fx.Node]:
    """The values that a node of no region reads; `inner`: those that stay inside regions."""
    reads = set(flow.sources[node])
    if flow.sizes[node]:
        there = {n for n in flow.order if n not in inner}
        reads |= {flow.stand_in(n, there) for n in flow.sizes[node]}
    return reads


def in_sequence(flow: Flow, regions: Sequence[Region]) -> Iterator[Region | list[fx.Node]]:
    """The regions, and between them the other nodes in groups as large as can be, in an order in
    which each part reads what earlier ones made.
    """
    inner = {node for region in regions for node in region.nodes if node is not region.end}
    owned = {region.end for region in regions} | inner
    done: set[fx.Node] = {node for node in flow.order if node.op == "placeholder"}
    rest = [node for node in flow.order if node not in owned and node not in done]
    reads = {node: reads_of(flow, node, inner) for node in rest}
    left = list(regions)
    while rest or left:
        group = []
        for node in rest:
            if reads[node] <= done:
                group.append(node)
                done.add(node)
        if group:
            rest = [node for node in rest if node not in done]
            yield group
        ready = [region for region in left if region.start in done]
        for region in ready:
            done.add(region.end)
            yield region
        left = [region for region in left if region not in ready]


def same_shape(node: fx.Node) -> fx.Node | None:
    """The operand of a function of each number, or of a normalization, whose shape it keeps."""
    if kind_of(node) not in ("pointwise", "norm"):
        return None
    tensors = [n for n in node.all_input_nodes if n.op != "get_attr" and n.meta["shape"]]
    alone = len(tensors) == 1 and node.args[:1] == (tensors[0],)
    return tensors[0] if alone and tensors[0].meta["shape"] == node.meta["shape"] else None

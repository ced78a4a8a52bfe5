# SPDX-License-Identifier: Apache-2.0
"""Eager fallback: what has no program form runs in PyTorch, between programs.

A trace is cut into regions that a program takes (`regions`) and islands, everything else. This
always ends: what does not compile after all is halved until the part that refuses is alone, and in
the worst case the whole network is one island.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ternary_ops.compiler.domains import Uncalibrated
from ternary_ops.compiler.island_program import Island, IslandProgram, Part, Turned, turn
from ternary_ops.compiler.read import FIRST, LAST, owner_of, unsupported
from ternary_ops.compiler.regions import (
    Flow,
    Nodes,
    Region,
    find_regions,
    in_sequence,
    reads_of,
)
from ternary_ops.compiler.trace_check import check_same, run_checked
from ternary_ops.compiler.work import count_macs
from ternary_ops.errors import UnsupportedModel, UnsupportedShape, first_line, need
from ternary_ops.graph.nodes import is_size, module_of
from ternary_ops.graph.observed import INPUT_VALUE, value_name
from ternary_ops.graph.signature import Signature
from ternary_ops.graph.trace import Interpreter, trace_around
from ternary_ops.runtime import Program

__all__ = ["Island", "IslandProgram", "compile_with_islands"]

_log = logging.getLogger(__name__)
CompilePart = Callable[[nn.Module, Tensor], Program]
_REPORT = "There is nothing to compile."
_JOINS = "several values meet here, and a program has one input and one output"


@torch.no_grad()
def compile_with_islands(
    network: nn.Module, x: Tensor, signature: Signature, compile_part: CompilePart
) -> IslandProgram:
    """Compile what has a program form of `network` (its own copy, in eval mode); the rest runs in
    PyTorch. A warning gives its share of the multiply-adds.

    Raises what `compile_part` raises other than UnsupportedModel, and Uncalibrated.
    """
    try:
        made = _cut(network, x, signature, compile_part)
    except Uncalibrated:
        raise
    except (UnsupportedModel, UnsupportedShape) as error:
        made = _whole(network, signature, first_line(error))
    _log.warning("%r", made)
    return made


def _whole(network: nn.Module, signature: Signature, reason: str) -> IslandProgram:
    """All of it as one island."""

    def run(x: Tensor) -> tuple[Tensor]:
        return (signature.result(network, x),)

    island = Island(("",), (type(network).__name__,), reason, 1.0, run)
    return IslandProgram([Part(island, ("x",), ("y",))], 1.0)


def _cut(
    network: nn.Module, x: Tensor, signature: Signature, compile_part: CompilePart
) -> IslandProgram:
    traced, kept = trace_around(network, signature)
    expected = signature.result(network, x.clone())
    run_checked(traced, x, expected)
    count_macs(traced, x)
    flow = Flow(traced.graph)
    reasons = _problems(traced, {error.path: first_line(error) for error in kept})
    parts = _Parts(traced, x, flow, reasons, compile_part)
    parts.compile()
    return parts.program(expected)


def _problems(traced: fx.GraphModule, kept: Mapping[str, str]) -> dict[fx.Node, str]:
    """Nodes without a program form, and why; kept: modules that could not be traced."""
    found = {n: kept[str(n.target)] for n in traced.graph.nodes if n.target in kept}
    while True:
        first, last = (dict(unsupported(traced, set(found), way)) for way in (False, True))
        new = {n: text for n, text in first.items() if n in last and n not in found}
        if not new:
            return found
        found.update(new)


@dataclass
class _Parts:
    """The regions of a trace that compile, and what lies between them."""

    traced: fx.GraphModule
    x: Tensor
    flow: Flow
    refused: dict[fx.Node, str]  # nodes that no region may hold, and why
    compile_part: CompilePart
    regions: list[Region] = field(default_factory=list)
    programs: dict[Region, tuple[Program, Turned]] = field(default_factory=dict)
    why: dict[fx.Node, str] = field(default_factory=dict)  # of nodes of regions that were halved

    def compile(self) -> None:
        """Compile regions, smaller ones where the larger ones refuse."""
        limits: dict[fx.Node, int] = {}
        while True:
            self.regions = find_regions(self.flow, self.refused, _fits, limits)
            samples = self._samples()
            failed = False
            for region in self.regions:
                if region in self.programs:
                    continue
                try:
                    self.programs[region] = self._compiled(region, samples[region.start])
                except Uncalibrated:
                    raise
                except (UnsupportedModel, UnsupportedShape) as error:
                    failed = True
                    self._halve(region, first_line(error), limits)
            if not failed:
                return

    def _compiled(self, region: Region, sample: Tensor) -> tuple[Program, Turned]:
        """The program of a region, with channels last where it takes or makes images so."""
        part = self._module(region.nodes, [region.start], region.end)
        part.meta[INPUT_VALUE] = value_name(region.start)
        try:
            return self.compile_part(part, sample), (False, False)
        except UnsupportedModel as error:
            start, end = (len(n.meta["shape"]) == 4 for n in (region.start, region.end))
            first = region.start.op == "placeholder"
            if isinstance(error, Uncalibrated) or not (end or (start and not first)):
                raise
            turned = start and not first, end
        graph = part.graph
        given, result = next(iter(graph.nodes)), graph.output_node()
        if turned[0]:
            with graph.inserting_after(given):
                seen = graph.call_method("permute", (given, *LAST))
            given.replace_all_uses_with(seen, lambda user: user is not seen)
        if turned[1]:
            with graph.inserting_before(result):
                result.args = (graph.call_method("permute", (result.args[0], *FIRST)),)
        part.recompile()
        return self.compile_part(part, turn(sample, FIRST) if turned[0] else sample), turned

    def _halve(self, region: Region, reason: str, limits: dict[fx.Node, int]) -> None:
        if len(region.nodes) == 1:
            self.refused[region.end] = reason
        for node in region.nodes:
            self.why.setdefault(node, reason)
        limits[region.start] = len(region.nodes) // 2

    def _samples(self) -> dict[fx.Node, Tensor]:
        """The values on the example that regions start from."""
        wanted = _Values(self.traced, {region.start for region in self.regions})
        wanted.run(self.x.clone())
        return wanted.seen

    def program(self, expected: Tensor) -> IslandProgram:
        """The parts in sequence; raises UnsupportedModel unless they compute what is expected."""
        values = {self.flow.order[0]: self.x.clone()}
        parts: list[Part] = []
        for part, reads, after in self._live():
            nodes = part.nodes if isinstance(part, Region) else part
            makes = [node for node in nodes if node in after]
            module = self._module(nodes, reads, makes)
            values.update(zip(makes, module(*(values[node] for node in reads)), strict=True))
            turned = False, False
            if isinstance(part, Region):
                run: Program | Island
                run, turned = self.programs[part]
            else:
                run = self._island(part, module)
            last = [node for node in reads if node not in after]
            for node in last:
                del values[node]
            parts.append(Part(run, _names(reads), _names(makes), _names(last), turned))
        if not parts:
            raise UnsupportedModel(need("a network that computes", "its input as it is", _REPORT))
        check_same(values[self.flow.output], expected)
        return IslandProgram(parts, sum(node.meta["macs"] for node in self.flow.order))

    def _live(self) -> list[tuple[Region | list[fx.Node], list[fx.Node], set[fx.Node]]]:
        """Each part that the output needs, with the values it reads and those read after it."""
        found = []
        inner = {n for region in self.regions for n in region.nodes if n is not region.end}
        later = {self.flow.output}
        for part in reversed(list(in_sequence(self.flow, self.regions))):
            nodes = part.nodes if isinstance(part, Region) else part
            if later.isdisjoint(nodes):
                continue
            sources = {part.start} if isinstance(part, Region) else set[fx.Node]()
            if not isinstance(part, Region):
                sources.update(*(reads_of(self.flow, node, inner) for node in nodes))
            reads = sorted(sources.difference(nodes), key=self.flow.number.__getitem__)
            found.append((part, reads, set(later)))
            later |= set(reads)
        return found[::-1]

    def _module(self, nodes: Nodes, reads: Nodes, result: fx.Node | Nodes) -> fx.GraphModule:
        """These nodes as a module that takes the values `reads`, with the constants and sizes that
        they need.
        """
        graph, here = fx.Graph(), {*nodes, *reads}
        made = {node: graph.placeholder(node.name) for node in reads}

        def copied(node: fx.Node) -> fx.Node:
            if node not in made:
                for_size = is_size(node) and node.args[0] in self.flow.alike
                made[node] = graph.node_copy(
                    node, lambda n: copied(self.flow.stand_in(n, here) if for_size else n)
                )
            return made[node]

        for node in nodes:
            copied(node)
        graph.output(fx.node.map_arg(result, made.__getitem__))
        return fx.GraphModule(self.traced, graph)

    def _island(self, nodes: Nodes, run: fx.GraphModule) -> Island:
        """The island of a group; it is called by the nodes without a program form."""
        here = [node for node in nodes if node in self.refused] or list(nodes)
        reason = next((self.refused[n] for n in here if n in self.refused), None)
        reason = reason or next((self.why[n] for n in here if n in self.why), _JOINS)
        macs = sum(node.meta["macs"] for node in nodes)
        return Island(_places(here), tuple(map(_kind, here)), reason, macs, run)


class _Values(Interpreter):
    """Runs a trace and keeps some of its values."""

    def __init__(self, module: fx.GraphModule, wanted: Collection[fx.Node]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; a copy is kept, since later nodes may write into it."""
        value = super().run_node(n)
        if n in self._wanted:
            self.seen[n] = value.clone()
        return value


def _fits(node: fx.Node) -> bool:
    """True for a value that a program can read and make."""
    shape = node.meta["shape"] or ()
    return node.meta["dtype"] is torch.float32 and len(shape) in (2, 3, 4) and 0 not in shape


def _names(nodes: Nodes) -> tuple[str, ...]:
    return tuple("x" if node.op == "placeholder" else f"{node.name}'" for node in nodes)


def _kind(node: fx.Node) -> str:
    """The class of the module, or the function, that a node calls."""
    module = module_of(node)
    name = getattr(node.target, "__name__", str(node.target))
    return name if module is None else type(module).__name__


def _places(nodes: Nodes) -> tuple[str, ...]:
    """The modules in whose forward the nodes stand, without those inside others of them."""
    paths = dict.fromkeys(owner_of(node) for node in nodes)
    return tuple(
        path
        for path in paths
        if not any(path != other and f"{path}.".startswith(f"{other}.") for other in paths if other)
    )

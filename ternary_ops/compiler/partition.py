# SPDX-License-Identifier: Apache-2.0
"""Eager fallback: modules without a program form run in PyTorch, between programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ternary_ops.compiler.call import shape_of
from ternary_ops.compiler.read import unsupported
from ternary_ops.compiler.trace_check import run_checked
from ternary_ops.errors import UnsupportedModel, UnsupportedShape, first_line, need
from ternary_ops.graph.observed import INPUT_VALUE, value_name
from ternary_ops.graph.signature import Signature
from ternary_ops.graph.trace import TraceFailed, trace
from ternary_ops.runtime import Program

CompilePart = Callable[[nn.Module, Tensor], Program]


@dataclass(frozen=True)
class Island:
    """A module that runs in PyTorch, under its path in the model, and why."""

    name: str
    module: nn.Module
    reason: str

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The module's float32 result for a float32 array."""
        with torch.no_grad():
            y: NDArray[np.float32] = self.module(torch.from_numpy(x)).float().numpy()
        return y


class IslandProgram:
    """Programs and eager torch modules in sequence. Called as a Program; cannot be saved."""

    def __init__(self, parts: Sequence[Program | Island]) -> None:
        self.parts = tuple(parts)

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Run x, as `Program` takes it, through every part; returns float32."""
        if not isinstance(x, np.ndarray) or (x.dtype != np.uint8 and x.dtype.kind != "f"):
            got = getattr(x, "dtype", type(x).__name__)
            raise UnsupportedShape(
                need(
                    "a NumPy array of floats or uint8 as a program's input",
                    got,
                    "Convert it first.",
                )
            )
        y: NDArray[np.float32] = np.ascontiguousarray(x, np.float32)
        for part in self.parts:
            y = part(y)
        return y

    @property
    def islands(self) -> tuple[str, ...]:
        """Paths of the modules that run in PyTorch."""
        return tuple(part.name for part in self.parts if isinstance(part, Island))

    def summary(self) -> str:
        """The tables of the programs and, between them, one line for each eager module."""
        lines = []
        for part in self.parts:
            if isinstance(part, Island):
                kind = type(part.module).__name__
                lines.append(f"torch island {part.name} ({kind}): {part.reason}")
            else:
                lines.append(part.summary())
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> NoReturn:
        """Raises UnsupportedModel: a program file runs without PyTorch."""
        raise UnsupportedModel(
            need(
                "a saved program runs without PyTorch",
                f"torch islands: {', '.join(self.islands)}",
                "Replace these modules by supported ones (compile without islands lists why).",
            )
        )

    def __repr__(self) -> str:
        """Names of the modules that run in PyTorch."""
        return f"IslandProgram({len(self.parts)} parts, islands {', '.join(self.islands)})"


@torch.no_grad()
def compile_with_islands(
    network: nn.Module, x: Tensor, signature: Signature, compile_part: CompilePart
) -> IslandProgram:
    """Cut `network` (its own copy, in eval mode) at the modules that have no program form.

    Where values flow around such a module, the module that holds both becomes the island. Raises
    UnsupportedModel when that leads to the whole network.
    """
    islands: dict[str, str] = {}
    while True:
        traced = _traced(network, islands, signature)
        if traced is None:
            continue
        run_checked(traced, x, signature.result(network, x.clone()))
        here = {n: str(n.target) for n in traced.graph.nodes if n.target in islands}
        found = [(_owner(node), text) for node, text in unsupported(traced, set(here))]
        found += [
            (_parent(path), f"values flow around {path}")
            for node, path in here.items()
            if not _cuts(node)
        ]
        if not found:
            return IslandProgram(_parts(network, traced, here, islands, x, compile_part))
        for path, reason in found:
            _grow(network, islands, path, reason)


def _traced(
    network: nn.Module, islands: dict[str, str], signature: Signature
) -> fx.GraphModule | None:
    """Trace with eager modules as leaves; None if tracing failed and added one."""
    try:
        whole = [network.get_submodule(path) for path in islands]
        return trace(network, whole, signature)
    except TraceFailed as error:
        _grow(network, islands, error.path, first_line(error))
        return None


def _grow(network: nn.Module, islands: dict[str, str], path: str, reason: str) -> None:
    """Run the module at `path` eagerly, or the nearest one around it that is called."""
    while path and isinstance(network.get_submodule(path), (nn.ModuleList, nn.ModuleDict)):
        path = _parent(path)
    if not path:
        raise UnsupportedModel(
            need(
                "as island a module of its own with one input and one output",
                f"the model's own forward: {reason}",
                "Move that part into a module.",
            )
        )
    for inner in [name for name in islands if name.startswith(f"{path}.")]:
        del islands[inner]
    islands.setdefault(path, reason)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _owner(node: fx.Node) -> str:
    """The path of the module that a node calls, or in whose forward it stands."""
    if node.op == "call_module":
        return str(node.target)
    inside = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return inside[-1] if inside else ""


def _cuts(island: fx.Node) -> bool:
    """True if all data flow from before the eager module to after it passes through it."""
    if len(island.args) != 1 or island.kwargs or not shape_of(island):
        return False
    before = {n for n in island.graph.nodes if n < island and n.op != "get_attr"}
    return all(user < island or user is island for node in before for user in node.users)


def _parts(
    network: nn.Module,
    traced: fx.GraphModule,
    here: dict[fx.Node, str],
    islands: dict[str, str],
    x: Tensor,
    compile_part: CompilePart,
) -> list[Program | Island]:
    parts: list[Program | Island] = []
    start: fx.Node | None = None
    between: list[fx.Node] = []

    def close(end: fx.Node) -> None:
        nonlocal x
        if start is not None and end is not start:
            part = _segment(traced, start, between, end)
            parts.append(compile_part(part, x))
            with torch.no_grad():
                x = part(x)

    for node in traced.graph.nodes:
        if node.op == "placeholder":
            start = node
        elif node in here or node.op == "output":
            (end,) = node.all_input_nodes
            close(end)
            if node in here:
                module = network.get_submodule(here[node])
                parts.append(Island(here[node], module, islands[here[node]]))
                with torch.no_grad():
                    x = module(x)
            start, between = node, []
        else:
            between.append(node)
    return parts


def _segment(
    traced: fx.GraphModule, start: fx.Node, nodes: Sequence[fx.Node], end: fx.Node
) -> fx.GraphModule:
    """The nodes after `start` up to `end` as a module of one input."""
    graph = fx.Graph()
    made = {start: graph.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in made and node.op == "get_attr":
            made[node] = graph.node_copy(node)
        return made[node]

    for node in nodes:
        if node not in made:
            made[node] = graph.node_copy(node, copied)
    graph.output(made[end])
    part = fx.GraphModule(traced, graph)
    part.meta[INPUT_VALUE] = value_name(start)
    return part

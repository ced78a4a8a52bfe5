# SPDX-License-Identifier: Apache-2.0
"""The one door through which tests of random networks reach the package.

A change of the package's layout is a change of this file, and of none of those tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_quant
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import ternary_ops as tops
from ternary_ops import reference, runtime
from ternary_ops.errors import FormatError, UnsupportedShape
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.interpret import node_value
from ternary_ops.program.ops import OPS
from ternary_ops.program.shapes import infer
from ternary_ops.program.weight import Weight
from ternary_ops.reference import activations
from ternary_ops.runtime import Program

__all__ = [
    "FormatError",
    "Graph",
    "Node",
    "Program",
    "UnsupportedShape",
    "Weight",
    "activations",
    "infer",
    "reference",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """Rows [begin, end) of a value are made, after `drop` rows of its memory were let go and the
    `keep` that follow were moved down.
    """

    value: int
    begin: int
    end: int
    drop: int
    keep: int


@dataclass(frozen=True)
class Place:
    """Where a value lies: its memory (-1: the caller's own), its rows, padding rows above and
    below, and how many rows the memory holds.
    """

    memory: int
    rows: int
    margin: int
    capacity: int


@dataclass(frozen=True)
class Schedule:
    """band: rows of the output at a time; 0: every value as a whole."""

    band: int
    tasks: list[Task]
    places: list[Place]


def debug(program: Program, band: int, poison: bool) -> None:
    """Bands of so many output rows (0: natural ones); memory that holds NaN before each run."""
    program._untuned.debug(band=band, poison=poison)


def schedule(program: Program, h: int, w: int) -> Schedule:
    """How an image of this size goes through."""
    told = program._untuned.schedule(h, w)
    return Schedule(
        told["band"], [Task(*t) for t in told["tasks"]], [Place(*v) for v in told["values"]]
    )


@contextmanager
def running(isa: str, threads: int) -> Iterator[None]:
    """On one instruction set, with so many threads."""
    with runtime.force_isa(isa), runtime.num_threads(threads):
        yield


def operators() -> tuple[str, ...]:
    """All that a program knows."""
    return tuple(OPS)


def available_isas() -> list[str]:
    """All that work here."""
    return runtime.available_isas()


def reload(program: Program, path: Path) -> Program:
    """Through a file and back."""
    program.save(path)
    return runtime.load(path)


def by_numpy(graph: Graph, node: Node, values: Sequence[Array]) -> Array:
    """A node's value, from the NumPy reference."""
    return node_value(graph, node, values)


def by_torch(graph: Graph, node: Node, values: Sequence[Array]) -> Array:
    """A node's value, from PyTorch's own operators."""
    operands = {j: torch.from_numpy(values[j].astype(np.float32)) for j in set(node.inputs)}
    return fake_quant.node_value(graph, node, operands).numpy()


def compiled(module: nn.Module, x: Array) -> Program:
    """The program of a network in PyTorch."""
    return tops.compile(module, torch.from_numpy(x))


def quantized(module: nn.Module, x: Array, kind: str) -> nn.Module:
    """The network with integer layers, ranges from x. kind: int8, quads (three in four empty),
    ternary, or fine (eleven bits where convolutions may read them).
    """
    if kind == "quads":
        _empty_quads(module, 0.75)
    weights = "ternary" if kind == "ternary" else "int8"
    rules = {}
    if kind == "fine":
        fine = tops.TernaryConfig("int8", activations="uint11")
        rules = {
            name: fine
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Conv2d) and layer.groups == 1
        }
    config = tops.TernaryConfig(weights, zeros=0.0)
    tops.quantize_(module, tops.plan(module, config, rules=rules))
    tops.calibrate(module, [torch.from_numpy(x)])
    return module.eval()


def _empty_quads(module: nn.Module, share: float) -> None:
    rng = np.random.default_rng(5)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            o, i, r, s = layer.weight.shape
            empty = rng.random((o, -(-i // 4), r, s)) < share
            mask = np.repeat(~empty, 4, axis=1)[:, :i]
            with torch.no_grad():
                layer.weight.mul_(torch.from_numpy(mask))


def whole_by_torch(graph: Graph, x: Array) -> Array:
    """The output, from PyTorch's own operators."""
    return fake_quant.run(graph, x)[-1].numpy()

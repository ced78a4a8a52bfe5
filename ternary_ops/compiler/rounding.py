# SPDX-License-Identifier: Apache-2.0
"""Where a quantized program parts from the fake-quantized network in torch, value by value.

Both round what layers read. A program also rounds what is between: sums, products and functions
that stay codes. `rounding` walks through both side by side and gives the noise of each value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ternary_ops.compiler.axes import Axis, Value
from ternary_ops.compiler.lower import Lowered, lower
from ternary_ops.compiler.pipeline import compile_watched
from ternary_ops.compiler.prepare import float_activations
from ternary_ops.compiler.step import FLOATS, Step
from ternary_ops.graph.trace import Interpreter
from ternary_ops.program.operator import swap_tokens
from ternary_ops.program.weight import Array, Params
from ternary_ops.reference.arithmetic import dequantize, quantize
from ternary_ops.runtime import Program
from ternary_ops.table import Table

_COLUMNS = ("value", "made as", "program dB", "torch dB")
_SAME = 1e-3  # of the largest number: beyond it a traced node is not what a step makes


@dataclass(frozen=True)
class Rounding:
    """One value of a network: signal over noise, in decibels, beside the network with float
    activations, of the program and of the fake-quantized network in torch.

    codes: scale and zero point where the program makes uint8.
    """

    place: str
    codes: Params | None
    program: float
    torch: float

    @property
    def loss(self) -> float:
        """Decibels by which the program is below."""
        return max(self.torch - self.program, 0.0) if math.isfinite(self.program) else 0.0


@dataclass(frozen=True)
class RoundingReport:
    """Rows in the order of the program. str() is a table."""

    rows: tuple[Rounding, ...]

    @property
    def loss(self) -> float:
        """That of the last value, the output."""
        return self.rows[-1].loss if self.rows else 0.0

    def first(self, least: float = 1.0) -> Rounding | None:
        """The first value whose program is `least` decibels below, if there is one."""
        return next((row for row in self.rows if row.loss >= least), None)

    def __str__(self) -> str:
        """One line per value, and where both part."""
        cells = [
            (row.place, "uint8" if row.codes else "float32", _shown(row.program), _shown(row.torch))
            for row in self.rows
        ]
        first = self.first()
        note = "they agree to 1 dB" if first is None else f"they part at {first.place}"
        return str(Table(_COLUMNS, cells, notes=(note,), words=_COLUMNS[1:2]))


def rounding(model: nn.Module, sample: Tensor) -> RoundingReport:
    """The noise of every value of a quantized network, of its program and in torch.

    A value that layers read as codes counts as they read it. Values of which the program has no
    counterpart, such as a sum before the ReLU that is fused into it, are left out. sample: as for
    compile. Raises what compile raises.
    """
    found: list[tuple[Rounding, ...]] = []

    def watch(traced: fx.GraphModule, x: Tensor, steps: Sequence[Step], lowered: Lowered) -> None:
        if not found:  # later traces, at other sizes, only check this one
            found.append(tuple(_walk(traced, x, steps, lowered)))

    compile_watched(model, sample, watch)
    return RoundingReport(found[0])


def _walk(
    traced: fx.GraphModule, x: Tensor, steps: Sequence[Step], lowered: Lowered
) -> Iterator[Rounding]:
    """The rows of one trace."""
    fake = _Values(traced)
    fake.run(x.clone())
    with float_activations(traced):
        exact = _Values(traced)
        exact.run(x.clone())
    made = _arrays(lowered, x)
    without_codes = _arrays(_in_floats(steps, x), x)
    for step in steps:
        if step not in made or step not in without_codes or step.op in ("input", "constant"):
            continue
        for node, value in reversed(step.traced):
            wanted = _laid(exact.found.get(node), value)
            if wanted is None or not _same(without_codes[step], wanted):
                continue
            twin = _laid(fake.found[node], value)
            if twin is not None:
                twin = _as_read(twin, step)
                dB = _sqnr(made[step], wanted), _sqnr(twin, wanted)
                yield Rounding(step.place or str(node), step.y, *dB)
            break


class _Values(Interpreter):
    """Runs a trace and keeps every tensor."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        """As the base class; what is written in place later is kept as it is now."""
        made = super().run_node(n)
        if isinstance(made, Tensor) and made.is_floating_point():
            self.found[n] = made.detach().clone()
        return made


def _in_floats(steps: Sequence[Step], x: Tensor) -> Lowered:
    """The program of the same steps, all of them on floats."""
    former = [(step, step.reads, step.y) for step in steps]
    try:
        for step in steps:
            step.reads = [None if form is None else FLOATS for form in step.reads]
            step.y = None
        return lower(steps, x.shape)
    finally:
        for step, reads, y in former:
            step.reads, step.y = reads, y


def _arrays(lowered: Lowered, x: Tensor) -> dict[Step, Array]:
    """Values of a program by step, as floats."""
    graph = lowered.graph
    arrays = Program(graph, tuple(x.shape)).trace(x.numpy())
    found = {}
    for step, index in lowered.made.items():
        y = graph.values[index].y
        array = swap_tokens(arrays[index])
        found[step] = array if y is None else dequantize(array, *y)
    return found


def _laid(made: Tensor | None, value: Value) -> NDArray[np.float32] | None:
    """A traced tensor as it lies in the value of a step; None for another size."""
    if made is None or tuple(made.shape) != tuple(sizes[0] for sizes in value.sizes):
        return None
    atoms = [atom for axis in value.axes for atom in axis]
    array = made.reshape([atom.sizes[0] for atom in atoms])
    for place, atom in reversed(list(enumerate(atoms))):
        if atom in value.repeated:
            array = array.select(place, 0)
    there = [atom for atom in atoms if atom not in value.repeated]
    if len(there) != len(value.atoms):
        return None
    array = array.permute([there.index(atom) for atom in value.atoms])
    laid: NDArray[np.float32] = array.reshape([_size(axis) for axis in value.form]).numpy()
    return laid


def _size(axis: Axis) -> int:
    return math.prod(atom.sizes[0] for atom in axis)


def _same(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    return bool(np.abs(a - b).max(initial=0) <= _SAME * np.abs(b).max(initial=0))


def _as_read(twin: Array, step: Step) -> Array:
    """A value in torch, rounded as the layers that read it do."""
    if step.wanted is None or step.y is None:
        return twin
    return dequantize(quantize(twin, *step.y), *step.y)


def _sqnr(got: Array, wanted: Array) -> float:
    """Decibels; infinite where both are the same."""
    exact = wanted.astype(np.float64)
    noise, signal = float(np.square(got - exact).sum()), float(np.square(exact).sum())
    return 10 * math.log10(signal / noise) if noise and signal else math.inf


def _shown(decibels: float) -> str:
    return f"{decibels:.1f}" if math.isfinite(decibels) else "-"

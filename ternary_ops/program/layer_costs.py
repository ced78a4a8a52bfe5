# SPDX-License-Identifier: Apache-2.0
"""What a layer costs in the engine: the one table that predictions and choices stand on.

A program is run on this machine with random codes in its layers, ternary or of 8 bits, at a few
shares of empty quads (`random_codes`); of each node the fastest of many turns counts, since other
users of a machine can only slow it down. Programs take turns, so that a busy moment hits all of
them. Between shares that were measured, milliseconds are interpolated linearly. NumPy only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops import _native
from ternary_ops.errors import BadConfig, need
from ternary_ops.program.cpu import isa, processor
from ternary_ops.program.native import build
from ternary_ops.program.program import Program
from ternary_ops.program.random_codes import Emptied

# No layer is emptied further by a rule that goes by time: less is left than an engine's overhead.
MOST_EMPTY = 0.97
KINDS = ("ternary", "int8")
# Denser where loops take over from each other (csrc/kernels/table.h, SparseBelow).
SHARES = (0.0, 0.2, 0.25, 0.3, 0.45, 0.5, 0.6, 0.75, 0.9, MOST_EMPTY)
_SECONDS = 0.4  # of timing one program
_ROUNDS, _REPEATS = (4, 40), 3  # least and most turns of each; calls in a turn
_CALLS = (5, 1000)  # least and most of timing whole calls
# A saving below this share of the mean one is noise: a layer that costs next to nothing.
_LEAST_SAVING = 0.01


@dataclass(frozen=True)
class LayerCost:
    """Milliseconds of one layer by kind of weights: pairs of a share of empty quads and ms."""

    curves: Mapping[str, tuple[tuple[float, float], ...]]

    def ms(self, kind: str, zeros: float) -> float:
        """Interpolated between the shares that were measured, and on from the last two."""
        curve = self.curves.get(kind)
        if curve is None:
            do = "Measure with kinds=(...) that holds it."
            raise BadConfig(need(f"one of the kinds {', '.join(self.curves)}", repr(kind), do))
        shares, times = zip(*curve, strict=True)
        if zeros > shares[-1] and len(curve) > 1:
            slope = (times[-1] - times[-2]) / (shares[-1] - shares[-2])
            return float(max(times[-1] + slope * (zeros - shares[-1]), 0.0))
        return float(np.interp(zeros, shares, times))

    def saving(self, kind: str) -> float:
        """What a layer saves from no empty quad to all that may be empty, for each of its quads
        in units of the whole layer. Times fall ever faster with empty quads (a dense loop takes
        over where few are empty), so that this chord is the lower convex hull of the curve.
        """
        return (self.ms(kind, 0.0) - self.ms(kind, MOST_EMPTY)) / MOST_EMPTY


@dataclass(frozen=True)
class CostTable:
    """Costs of a program's layers in one call on `sample`, and `others`: ms of everything else.

    machine, isa, threads: where it was measured.
    """

    machine: str
    isa: str
    threads: int
    sample: tuple[int, ...]
    layers: Mapping[str, LayerCost]
    others: float

    def ms(self, name: str, kind: str, zeros: float) -> float:
        """Milliseconds of a layer (`LayerCost.ms`); BadConfig for one that is not in the table."""
        if name not in self.layers:
            known = ", ".join(self.layers)
            do = "Measure a program that has it."
            raise BadConfig(need(f"a layer of the cost table ({known})", repr(name), do))
        return self.layers[name].ms(kind, zeros)

    def total(self, choices: Mapping[str, tuple[str, float]]) -> float:
        """Milliseconds of a call with these kinds and shares of empty quads of all its layers."""
        missing = sorted(set(self.layers) - set(choices))
        if missing:
            what = f"a kind and a share of empty quads for {', '.join(self.layers)}"
            raise BadConfig(need(what, f"none for {', '.join(missing)}", "Add them."))
        return self.others + sum(self.ms(name, *choice) for name, choice in choices.items())

    def evenly(self, kind: str, zeros: float) -> float:
        """Milliseconds of a call with the same kind and share in all layers."""
        return self.total({name: (kind, zeros) for name in self.layers})

    def savings(self, kinds: Mapping[str, str]) -> dict[str, float]:
        """`LayerCost.saving` of these layers, by their kinds; above 0, of three digits."""
        found = {name: max(self.layers[name].saving(kind), 0.0) for name, kind in kinds.items()}
        mean = sum(found.values()) / max(len(found), 1)
        least = _LEAST_SAVING * mean if mean > 0 else 1.0
        return {name: float(f"{max(saving, least):.3g}") for name, saving in found.items()}


@dataclass
class Turns:
    """One engine, and the fastest times so far: of each of its nodes, and of a call as a whole."""

    engine: Any
    ms: list[float] = field(default_factory=list)
    whole: float = float("inf")

    def take(self, x: NDArray[np.float32]) -> None:
        """Another turn."""
        found = [float(row["ms"]) for row in self.engine.profile(x, _REPEATS)]
        self.ms = [min(pair) for pair in zip(self.ms, found, strict=True)] if self.ms else found
        start = time.perf_counter()
        self.engine.run(x)
        self.whole = min(self.whole, 1e3 * (time.perf_counter() - start))

    @property
    def overhead(self) -> float:
        """Milliseconds of a call that no node takes."""
        return max(self.whole - sum(self.ms), 0.0)


def measure(
    program: Program,
    names: Collection[str] | None = None,
    points: Iterable[tuple[str, float]] | None = None,
    x: NDArray[np.float32] | None = None,
) -> CostTable:
    """Measure the layers called `names` (None: the ternary ones) on the present number of threads.

    points: kinds and shares of empty quads; by default all KINDS at SHARES. x: an input; None: a
    random one of the program's sample shape.
    """
    asked = [(kind, z) for kind in KINDS for z in SHARES] if points is None else list(points)
    if x is None:
        x = np.random.default_rng(0).random(program.sample, np.float32)
    emptied = Emptied(program.graph, names)
    turns = {(kind, z): Turns(build(emptied.at(z, kind))) for kind, z in sorted(asked)}
    take_turns([(turn, x) for turn in turns.values()], _SECONDS)
    nodes: dict[str, list[int]] = {name: [] for name in emptied.names}
    for i, node in enumerate(program.graph.nodes):
        if "w" in node.attrs and program.graph.weight(node).name in nodes:
            nodes[program.graph.weight(node).name].append(i)
    layers = {name: LayerCost(_curves(turns, own)) for name, own in nodes.items()}
    ruled = {i for own in nodes.values() for i in own}
    others = [
        sum(ms for i, ms in enumerate(t.ms) if i not in ruled) + t.overhead for t in turns.values()
    ]
    threads = _native.core().num_threads()
    return CostTable(processor(), isa(), threads, tuple(x.shape), layers, min(others))


def measure_beside(program: Program, other: Program) -> tuple[dict[str, float], float, float]:
    """Milliseconds of each layer of a program with the codes that it has, of a whole call, and of
    one of another program, which takes turns with it.
    """
    x = np.random.default_rng(0).random(program.sample, np.float32)
    turns = Turns(build(program.graph))
    take_turns([(turns, x)], _SECONDS)
    layers: dict[str, float] = {}
    for node, ms in zip(program.graph.nodes, turns.ms, strict=True):
        if "w" in node.attrs:
            name = program.graph.weight(node).name
            layers[name] = layers.get(name, 0.0) + ms
    whole, beside = calls_ms([partial(program, x), partial(other, x)])
    # Nodes are timed one by one, at other moments: what counts is their share of the call.
    share = whole / sum(turns.ms)
    return {name: ms * share for name, ms in layers.items()}, whole, beside


def call_ms(run: Callable[[], object]) -> float:
    """Milliseconds of the fastest of many calls: other users of the machine can only make them
    slower. With one thread that is its processor time.
    """
    return calls_ms([run])[0]


def calls_ms(runs: Sequence[Callable[[], object]]) -> list[float]:
    """`call_ms` of several that take turns."""
    clock = time.thread_time if _native.core().num_threads() == 1 else time.perf_counter
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    while (done := len(times[0])) < _CALLS[0] or (
        done < _CALLS[1] and sum(times[0]) < 1e3 * _SECONDS
    ):
        for run, own in zip(runs, times, strict=True):
            start = clock()
            run()
            own.append(1e3 * (clock() - start))
    return [min(own) for own in times]


def _curves(
    turns: Mapping[tuple[str, float], Turns], own: Sequence[int]
) -> dict[str, tuple[tuple[float, float], ...]]:
    """By kind, shares and summed milliseconds of some nodes."""
    found: dict[str, list[tuple[float, float]]] = {}
    for (kind, zeros), turn in turns.items():
        found.setdefault(kind, []).append((zeros, sum(turn.ms[i] for i in own)))
    return {kind: tuple(curve) for kind, curve in found.items()}


def take_turns(engines: Sequence[tuple[Turns, NDArray[np.float32]]], seconds: float) -> None:
    """Time engines on inputs, again and again in the same order, so many seconds each."""
    least, most = _ROUNDS
    end = time.perf_counter() + seconds * len(engines)
    for number in range(most):
        if number >= least and time.perf_counter() > end:
            break
        for engine, x in engines:
            engine.take(x)

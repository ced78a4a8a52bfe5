# SPDX-License-Identifier: Apache-2.0
"""What must hold of every network: call == trace == NumPy == PyTorch, however it is run.

One case draws one combination of instruction set, threads, batch, bands, sizes and reload. A
failure is shrunk to the smallest network that still fails, and printed with what makes it again.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import engine_access as access
import numpy as np
import torch
from engine_access import Array, FormatError, Graph, Node, Program, UnsupportedShape, infer
from graph_modules import Module, has_module_form
from programs import example
from random_graphs import KINDS, trimmed
from row_oracle import check_schedule
from topologies import network
from torch import nn

EPS = 2.0**-24
_TINY = 1e-6  # of values near 1: what functions of floats are rounded by
_FRONTS = ("float", "int8", "quads", "ternary", "fine")
# Of the output's size: sums of skip connections are rounded to codes where the network in PyTorch
# adds floats. Most are off by 0.01; a network whose signal clamps have flattened to a third of a
# code by 0.31 (seed 9612). A layer misread is off by 1 or more.
_ROUNDED = 0.5
_MOVED = (
    *("quantize", "slice", "concat", "max_pool2d", "flatten", "unflatten", "clamp", "add", "mul"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "rearrange", "crop", "pad"),
)
_WHOLE = 2e-4  # of a float network's largest output: thirty layers, each within its own bound


@dataclass(frozen=True)
class Case:
    """How a network is run. band: rows of the output at a time, 0 as the engine chooses; natural:
    as large as people's networks, which the references would take too long for.
    """

    seed: int
    isa: str
    threads: int
    batch: int
    band: int
    size: tuple[int, int]
    other: tuple[int, int]
    reload: bool
    natural: bool
    front: str = "program"  # or "float", int8, quads, ternary, fine: compiled from a module


def draw(seed: int, isas: Sequence[str], natural: bool | None = None) -> Case:
    """The case of a seed; natural None: one in fifty is, and one in twenty comes from a module."""
    rng = np.random.default_rng((seed, 11))
    large = rng.random() < 0.02 if natural is None else natural
    low, high = (40, 90) if large else (4, 40)
    front = str(rng.choice(_FRONTS)) if natural is None and rng.random() < 0.05 else "program"
    size, other = (tuple(int(v) for v in rng.integers(low, high, 2)) for _ in range(2))
    return Case(
        seed,
        str(rng.choice(isas)),
        int(rng.choice([1, 2, 3, 7])),
        int(rng.choice([1, 1, 2, 5])) if not large else 1,
        0 if large or rng.random() < 0.25 else int(rng.integers(1, 7)),
        (size[0], size[1]),
        (other[0], other[1]),
        bool(rng.random() < 0.25),
        bool(large) and front == "program",
        front,
    )


@dataclass
class Tally:
    """What a range of seeds covered."""

    graphs: int = 0
    refused: int = 0  # no image size was large enough
    formless: int = 0  # no module form
    weak: int = 0  # an output of few different numbers proves little
    nodes: Counter[int] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    axes: Counter[str] = field(default_factory=Counter)
    banded: int = 0  # in two bands or more
    often: int = 0  # with a value that three nodes read

    def add(self, graph: Graph, case: Case, bands: int, y: Array) -> None:
        self.graphs += 1
        self.nodes[len(graph.nodes)] += 1
        self.operators.update(node.op for node in graph.nodes)
        self.axes.update(
            (f"isa {case.isa}", f"threads {case.threads}", f"batch {case.batch}")
            + (
                f"band {case.band}",
                f"front {case.front}",
                f"reload {case.reload}",
                f"natural {case.natural}",
            )
        )
        self.banded += bands >= 2
        readers = Counter(j for node in graph.nodes for j in set(node.inputs))
        self.often += max(readers.values()) >= 3
        self.weak += np.unique(y).size < 3

    def __iadd__(self, other: Tally) -> Tally:
        for name in ("graphs", "refused", "formless", "weak", "banded", "often"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.nodes += other.nodes
        self.operators += other.operators
        self.axes += other.axes
        return self

    def median_nodes(self) -> int:
        return sorted(self.nodes.elements())[self.graphs // 2]

    def lines(self) -> Iterator[str]:
        share = 100 / max(1, self.graphs)
        left = f"refused for their size {self.refused}, without a module form {self.formless}"
        yield f"graphs {self.graphs}, {left}, with an output of few numbers {self.weak}"
        yield f"nodes: median {self.median_nodes()}, most {max(self.nodes)}"
        yield f"two bands or more: {self.banded * share:.1f} %"
        yield f"a value read three times: {self.often * share:.1f} %"
        yield "operators: " + ", ".join(f"{k} {v}" for k, v in self.operators.most_common())
        yield "run on: " + ", ".join(f"{k} {v}" for k, v in sorted(self.axes.items()))


class Difference(AssertionError):
    """Two ways that do not agree."""


def same(what: str, a: Array, b: Array) -> None:
    """Raise Difference unless they have the same bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        raise Difference(f"{what}: {a.dtype} {a.shape}, {b.dtype} {b.shape}")
    wrong = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if wrong.any():
        at = tuple(int(v) for v in np.argwhere(wrong)[0])
        raise Difference(f"{what}: {int(wrong.sum())} of {a.size}, first at {at}: {a[at]}, {b[at]}")


def close(what: str, a: Array, b: Array, bound: Array | float) -> None:
    """Raise Difference unless |a - b| <= bound."""
    if a.shape != b.shape:
        raise Difference(f"{what}: {a.shape}, {b.shape}")
    error = np.abs(a.astype(np.float64) - b)
    if not (error <= bound).all():
        worst = float((error - bound).max()) if np.isfinite(error).all() else float("nan")
        raise Difference(f"{what}: beyond the bound by {worst:.3g}")


def _bound(graph: Graph, node: Node, values: Sequence[Array]) -> float:
    """How far floats may lie from a sum in float64: K + 8 roundings of terms whose sizes add up to
    sum |w| * max |x|; four times that where rows are made in pairs (csrc/ops/winograd.h).
    """
    x = float(np.abs(values[node.inputs[0]].astype(np.float64)).max(initial=0))
    size = max([x, *(float(np.abs(values[j]).max(initial=0)) for j in node.inputs[1:])])
    if node.operator.is_layer:
        w = graph.weight(node)
        scale = 1.0 if w.scale is None else w.scale[:, None].astype(np.float64)
        sums = np.abs(w.array.reshape(w.shape[0], -1) * scale).sum(1).max(initial=0)
        bias = 0.0 if w.bias is None else float(np.abs(w.bias).max())
        terms = int(np.prod(w.shape[1:]))
        slope = 1.0 if w.slope is None else max(1.0, float(np.abs(w.slope).max()))
        return 4 * EPS * (terms + 8) * (sums * x + bias + size) * slope + _TINY
    if node.op == "reduce":
        return 4 * EPS * x * float(np.prod(values[node.inputs[0]].shape[1:])) + _TINY
    if node.op == "matmul":
        sums = x * float(np.abs(values[node.inputs[1]]).max(initial=0)) * node.attrs["scale"]
        return 4 * EPS * (values[node.inputs[0]].shape[2] + 8) ** 2 * sums + _TINY
    if node.op == "attention":
        q, k, v = (float(np.abs(values[j]).max(initial=0)) for j in node.inputs[:3])
        terms = values[node.inputs[0]].shape[2]
        score = (terms + 8) ** 2 * q * k * abs(node.attrs["scale"]) + 2 * size
        return 4 * EPS * v * (score + node.attrs["tokens"] + 8) + _TINY
    if "pool" in node.op:
        return EPS * (values[node.inputs[0]][0, 0].size + 8) * x + _TINY
    if node.operator.floats_only and "w" in node.attrs:
        return 64 * EPS * (1 + x) + 1e-5
    return 16 * EPS * (1 + size) * (1 + size) + _TINY


def _inexact(graph: Graph, node: Node) -> bool:
    """Floats that are made of floats by sums or functions of the C library."""
    codes = node.op in _MOVED or node.attrs.get("y") is not None
    return graph.values[node.inputs[0]].y is None and not codes


def _rounds_otherwise(node: Node) -> bool:
    """Where PyTorch's order of float32 steps is another one, so that a code may be the next."""
    own = node.op in ("layer_norm", "attention") and node.attrs["y"] is not None
    blended = node.attrs.get("mode") in ("bilinear", "bicubic")
    return own or blended or node.attrs.get("gate", False)


def check_nodes(graph: Graph, values: Sequence[Array]) -> None:
    """Each node against both references, from the engine's own values of those it reads."""
    for i, node in enumerate(graph.nodes[1:], 1):
        for name, by in (("NumPy", access.by_numpy), ("PyTorch", access.by_torch)):
            what = f"node {i} ({node.op}) against {name}"
            expected = by(graph, node, values)
            if _inexact(graph, node):
                close(what, values[i], expected, _bound(graph, node, values))
            elif name == "PyTorch" and _rounds_otherwise(node):
                codes = 2.0 if node.op == "attention" else 1.0  # its shares are rounded too
                step = codes if graph.values[i].y else _bound(graph, node, values)
                close(what, values[i], expected, step)
            else:
                same(what, values[i].astype(np.float32), expected.astype(np.float32))


def _sizes(graph: Graph, case: Case) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The case's sizes, or larger ones where a network needs them."""
    found = []
    for h, w in (case.size, case.other):
        for factor in (1, 2, 3):
            try:
                infer(graph, 1, h * factor, w * factor)
            except UnsupportedShape:
                continue
            found.append((h * factor, w * factor))
            break
    return (found[0], found[1]) if len(found) == 2 else None


def check(graph: Graph, case: Case, tally: Tally | None = None) -> None:
    """Raise Difference, or RowError of the schedule, unless everything agrees."""
    sizes = _sizes(graph, case)
    if sizes is None:
        if tally:
            tally.refused += 1
        return
    (h, w), other = sizes
    x = example(graph, case.batch, h, w, case.seed)
    program = Program(graph, x.shape) if case.front == "program" else check_front(graph, case, x)
    if program is None:
        if tally:
            tally.formless += 1
        return
    graph = program.graph
    if case.reload:
        with tempfile.TemporaryDirectory() as folder:
            program = access.reload(program, Path(folder, "net.safetensors"))
    access.debug(program, case.band, poison=True)
    bands = 0
    for height, width in (x.shape[2:], other):
        schedule = access.schedule(program, height, width)
        if schedule.band:
            shapes = infer(graph, 1, height, width)
            check_schedule(graph, shapes, schedule)
            bands = max(bands, -(-shapes[-1][2] // schedule.band))
    with access.running(case.isa, case.threads):
        y = program(x)
        between = program(example(graph, 1, *other, case.seed + 1))
        same("the same call again, after another size", program(x), y)
    with access.running(case.isa, 1):
        values = program.trace(x)
        same("call and trace", y, values[-1])
        last = program.trace(example(graph, 1, *other, case.seed + 1))[-1]
        same("call and trace of the other size", between, last)
        if case.batch > 1:
            same("one image alone", program(x[-1:]), y[-1:])
    if not case.natural:
        check_nodes(graph, values)
    elif all(node.op != "quantize" for node in graph.nodes):
        expected = access.whole_by_torch(graph, x)
        close("PyTorch", y, expected, _WHOLE * float(np.abs(expected).max()))
    if tally:
        tally.add(graph, case, bands, y)


def check_front(graph: Graph, case: Case, x: Array) -> Program | None:
    """The program compiled from the graph as a module, once it gives what the module gives; None
    where PyTorch's functions cannot say what the graph does.
    """
    if not has_module_form(graph):
        return None
    module: nn.Module = Module(graph, case.seed, norms=0.3).eval()
    if case.front != "float":
        module = access.quantized(module, x, case.front)
    program = access.compiled(module, x)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    y = program(x)
    if case.front == "float":
        close("the module", y, expected, _WHOLE * float(np.abs(expected).max()))
        return program
    size = np.linalg.norm(expected - expected.mean()) + 1e-3 * np.linalg.norm(expected)
    error = float(np.linalg.norm(y - expected) / (size + EPS))
    if not error < _ROUNDED:
        raise Difference(f"the module with {case.front} layers: off by {error:.3g}")
    return program


Failure = Callable[[Graph, Case], bool]


def fails_with(kind: type[Exception]) -> Failure:
    """Does a check raise this?"""

    def failing(graph: Graph, case: Case) -> bool:
        try:
            check(graph, case)
        except kind:
            return True
        except Exception:
            return False
        return False

    return failing


def _smaller(graph: Graph) -> Iterator[Graph]:
    """Networks with fewer nodes: cut short, or with a node passed by, or two in a row, as codes
    that were made floats and codes again.
    """
    nodes, weights = list(graph.nodes), list(graph.weights)
    attempts: list[tuple[list[Node], int]] = []
    for end in range(1, len(nodes) - 1):
        kept = nodes[: end + 1]
        if graph.values[end].fine:
            continue
        if graph.values[end].y is not None:
            kept.append(Node("dequantize", (end,)))
        attempts.append((kept, len(kept) - 1))
    for i in range(len(nodes) - 1, 0, -1):
        near = nodes[i].inputs
        for source in dict.fromkeys([*near, *(far for j in near for far in nodes[j].inputs)]):
            rest = [
                replace(n, inputs=tuple(source if j == i else j for j in n.inputs)) for n in nodes
            ]
            attempts.append((rest, len(nodes) - 1 if i < len(nodes) - 1 else source))
    for made, output in attempts:
        if output == 0:
            continue
        try:
            yield trimmed(made, weights, output)
        except FormatError:
            continue


def shrink(graph: Graph, case: Case, failing: Failure) -> tuple[Graph, Case]:
    """The smallest network and simplest case found that still fails."""
    simple: list[dict[str, object]] = [{"batch": 1}, {"threads": 1}, {"reload": False}, {"band": 0}]
    for change in simple:
        tried = replace(case, **change)  # type: ignore[arg-type]
        if failing(graph, tried):
            case = tried
    going = True
    while going:
        going = False
        for made in _smaller(graph):
            if len(made.nodes) < len(graph.nodes) and failing(made, case):
                graph, going = made, True
                break
    for size in ((4, 4), (6, 7), (9, 8), (13, 16), (20, 21)):
        tried = replace(case, size=size, other=size)
        if failing(graph, tried):
            return graph, tried
    return graph, case


def told(graph: Graph, case: Case) -> str:
    """A failure in words: how the network was run, and its nodes."""
    lines = [f"{case}", *(f"  {i}: {n.op} {n.inputs} {n.attrs}" for i, n in enumerate(graph.nodes))]
    return "\n".join(lines)


def run_seed(
    seed: int,
    tally: Tally,
    names: tuple[str, ...] = (),
    natural: bool | None = None,
    kinds: tuple[str, ...] = KINDS,
) -> None:
    """Draw, check, and say of a failure what the smallest network is."""
    case = draw(seed, access.available_isas(), natural)
    graph = network(seed, kinds if case.front == "program" else ("float",), names, case.natural)
    try:
        check(graph, case, tally)
    except Exception as error:
        small, simple = shrink(graph, case, fails_with(type(error)))
        why = _message(small, simple)
        raise Difference(
            f"seed {seed}: {type(error).__name__}: {error}\nsmallest: {why}\n{told(small, simple)}"
        ) from error


def _message(graph: Graph, case: Case) -> str:
    try:
        check(graph, case)
    except Exception as error:
        return str(error)
    return "passes"

# SPDX-License-Identifier: Apache-2.0
"""Check a network before any training: does it compile, what would it weigh and how long take.

Bytes and milliseconds are those of the network that `plan` would make by default (ternary, first
and last layer and depthwise ones at 8 bits) with ranges of the example, at shares of empty quads
that are the same in every ternary layer. Its codes are random, since only the number of quads that
are left matters, and its program is run on this machine at these shares (`program.layer_costs`):
nothing is extrapolated.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops import runtime
from ternary_ops.errors import BadConfig, UnsupportedModel, UnsupportedShape, first_line, need
from ternary_ops.program.layer_costs import call_ms, measure
from ternary_ops.program.random_codes import Emptied
from ternary_ops.runtime import Program
from ternary_ops.table import Table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ternary_ops.compiler.island_program import IslandProgram

ZEROS = (0.0, 0.75, 0.9)


@dataclass(frozen=True)
class Missing:
    """Calls of one operator that have no program form for one reason."""

    operator: str
    count: int
    reason: str
    first: str


@dataclass(frozen=True)
class Prediction:
    """At a share of empty quads in the ternary layers: bytes of the file, and milliseconds of one
    call on one thread, in processor time. With islands: bytes of the programs alone.
    """

    zeros: float
    bytes: int
    ms: float


@dataclass(frozen=True)
class Check:
    """What `check` found; print it.

    compiles: as one program. why_not: the whole message where it does not. missing: parts without a
    program form. islands: modules that islands=True leaves to PyTorch, "" for the model's own
    forward, and share, theirs of the multiply-adds (1 where islands fail as well). note: why there
    are no predictions.
    """

    input: tuple[int, ...]
    compiles: bool
    why_not: str
    missing: tuple[Missing, ...]
    islands: tuple[str, ...]
    share: float
    predictions: tuple[Prediction, ...]
    note: str
    seconds: float

    def __str__(self) -> str:
        """As `ternary-ops check` prints it."""
        lines = [f"input {list(self.input)}"]
        if self.compiles:
            lines.append("compiles, all of it, into one program")
        elif self.missing:
            count = sum(part.count for part in self.missing)
            lines += [f"does not compile: {count} parts have no program form", ""]
            lines += [str(self.missing_table())]
        else:
            lines.append(f"does not compile: {self.why_not}")
        if not self.compiles:
            lines += ["", self._islands()]
        if self.predictions:
            lines += ["", str(self.prediction_table())]
        if self.note:
            lines += ["", f"no prediction: {self.note}"]
        return "\n".join(lines)

    def missing_table(self) -> Table:
        """A row an operator and reason, the cause first."""
        columns = ("operator", "count", "first in", "reason")
        rows = [(m.operator, str(m.count), m.first, m.reason) for m in self.missing]
        return Table(columns, rows, words=columns)

    def prediction_table(self) -> Table:
        """Bytes and milliseconds by share of empty quads."""
        rows = [(f"{p.zeros:.0%}", f"{p.bytes:,}", f"{p.ms:.2f}") for p in self.predictions]
        inside = "" if self.compiles else "; ms with the islands, bytes without"
        notes = (
            "one thread of this machine, processor time; ternary layers of random codes, the first",
            f"and last layer and depthwise ones at 8 bits, ranges of the example{inside}",
        )
        return Table(("empty quads", "bytes", "ms"), rows, notes=notes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, what `ternary-ops check --json` prints."""
        return {
            **vars(self),
            "input": list(self.input),
            "missing": [vars(m) for m in self.missing],
            "islands": list(self.islands),
            "predictions": [vars(p) for p in self.predictions],
        }

    def _islands(self) -> str:
        if not self.islands:
            return "with islands=True it does not run either"
        names = ", ".join(name or "forward" for name in self.islands[:8])
        more = f" and {len(self.islands) - 8} more" if len(self.islands) > 8 else ""
        return (
            f"with islands=True PyTorch runs {names}{more}: {self.share:.1%} of the multiply-adds"
        )


@dataclass(frozen=True)
class _Made:
    """A quantized network, and the names of its layers that become ternary (None: as they are)."""

    program: Program | IslandProgram
    ternary: frozenset[str] | None


def check(
    model: nn.Module | Program,
    example: Tensor | NDArray[Any],
    zeros: Iterable[float] = ZEROS,
) -> Check:
    """Say whether a network compiles and what is missing, and predict bytes and times.

    model: a float network, one that is quantized already, or a Program. example: one input. zeros:
    shares of empty quads. Nothing is changed. Raises BadConfig for shares outside 0..1, and
    whatever the model raises.

    >>> found = tops.check(model, x)
    >>> found.compiles, [p.zeros for p in found.predictions]
    (True, [0.0, 0.75, 0.9])
    """
    shares = tuple(zeros)
    if not all(0 <= share < 1 for share in shares):
        raise BadConfig(need("shares of zeros in 0..1", shares, "Pass (0, 0.75, 0.9)."))
    start = time.perf_counter()
    if isinstance(model, Program):
        found = _compiling(np.shape(example), _predict(_Made(model, None), example, shares))
    else:
        with _quiet():
            found = _of_network(model, example, shares)
    return replace(found, seconds=round(time.perf_counter() - start, 2))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of the passes: what matters here stands in the result."""
    logger = logging.getLogger("ternary_ops")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _compiling(shape: tuple[int, ...], predictions: tuple[Prediction, ...]) -> Check:
    return Check(shape, True, "", (), (), 0.0, predictions, "", 0.0)


def _of_network(model: nn.Module, example: Any, shares: Sequence[float]) -> Check:
    import torch

    from ternary_ops.compiler import compile as compile_model
    from ternary_ops.compiler.problems import Refused

    x = torch.as_tensor(example)
    try:
        return _compiling(tuple(x.shape), _predict(_quantized(model, x, False), x.numpy(), shares))
    except (UnsupportedModel, UnsupportedShape) as error:
        note = first_line(error)
    try:
        compile_model(model, x)
        return replace(_compiling(tuple(x.shape), ()), note=note)
    except UnsupportedModel as error:
        groups = error.groups if isinstance(error, Refused) else ()
        why_not = str(error)
    missing = tuple(
        Missing(g.first.operator, len(g.problems), g.first.reason, g.first.where) for g in groups
    )
    found = Check(tuple(x.shape), False, why_not, missing, (), 1.0, (), "", 0.0)
    try:
        whole = compile_model(model, x, islands=True)
    except UnsupportedModel as error:
        return replace(found, note=first_line(error))
    if not isinstance(whole, Program):
        found = replace(found, islands=whole.islands, share=whole.share)
    try:
        return replace(found, predictions=_predict(_quantized(model, x, True), x.numpy(), shares))
    except (UnsupportedModel, UnsupportedShape) as error:
        return replace(found, note=first_line(error))


def _quantized(model: nn.Module, x: Tensor, islands: bool) -> _Made:
    """The network as plan would have it by default; one that is quantized already, as it is."""
    from ternary_ops.compiler import compile as compile_model
    from ternary_ops.graph.wrappers import unwrap
    from ternary_ops.nn import PackedLayer, TernaryLayer
    from ternary_ops.quantize.engine_costs import eight_bits
    from ternary_ops.quantize.plans import plan

    network = unwrap(model)
    if any(isinstance(m, (TernaryLayer, PackedLayer)) for m in network.modules()):
        return _Made(compile_model(network, x, islands=islands, allow_unfinished=True), None)
    planned = plan(network)
    ternary = frozenset(row.name for row in planned if row.action == "ternary")
    return _Made(eight_bits(network, x, planned, islands), ternary)


def _predict(made: _Made, x: Any, shares: Sequence[float]) -> tuple[Prediction, ...]:
    """Make the weights random at each share, and time what comes out on one thread."""
    x = np.ascontiguousarray(x, np.float32)
    programs = [part for part in _parts(made.program) if isinstance(part, Program)]
    points = [("ternary", share) for share in shares]
    with _one_thread(made.program), tempfile.TemporaryDirectory() as folder:
        inputs, islands = [x], 0.0
        if not isinstance(made.program, Program):
            inputs = [np.random.default_rng(0).random(p.sample, np.float32) for p in programs]
            # What is not spent in programs: islands, and the way between.
            within = [call_ms(partial(p, y)) for p, y in zip(programs, inputs, strict=True)]
            islands = max(call_ms(partial(made.program, x)) - sum(within), 0.0)
        tables = [
            measure(program, made.ternary, points, y)
            for program, y in zip(programs, inputs, strict=True)
        ]
        filled = [Emptied(program.graph, made.ternary) for program in programs]
        found = []
        for share in shares:
            ms = islands + sum(table.evenly("ternary", share) for table in tables)
            size = 0
            for program, graph in zip(programs, filled, strict=True):
                path = Path(folder, "program.safetensors")
                Program(graph.at(share), program.sample).save(path)
                size += path.stat().st_size
            found.append(Prediction(share, size, ms))
    return tuple(found)


def _parts(program: Program | IslandProgram) -> Sequence[Any]:
    return [program] if isinstance(program, Program) else program.parts


@contextmanager
def _one_thread(program: Program | IslandProgram) -> Iterator[None]:
    with runtime.num_threads(1):
        if isinstance(program, Program):
            yield
            return
        from ternary_ops.benchmark.timing import torch_threads  # needs torch

        with torch_threads(1):
            yield

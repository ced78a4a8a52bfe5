# SPDX-License-Identifier: Apache-2.0
"""Dense or sparse, layer by layer, by the clock of this machine instead of by density.

Both loops of a layer with integer input give the same bits, so the choice is about time alone.
Float layers are left to the engine: their sums would be rounded in another order.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops import _native
from ternary_ops._atomic import replace_file
from ternary_ops.errors import BadConfig, FormatError, need
from ternary_ops.layout.codes import to_array
from ternary_ops.program.cpu import processor
from ternary_ops.program.graph import Graph
from ternary_ops.program.native import build
from ternary_ops.program.serialize import to_arrays, to_index
from ternary_ops.table import Table

_PER_ROUND = 3  # runs of one engine in a row: the first of them finds the other's data in the cache
_VERSION = 1


@dataclass(frozen=True)
class Tuned:
    """One layer: its node, name, fraction of nonzero quads, and milliseconds of both loops."""

    node: int
    name: str
    density: float
    dense_ms: float
    sparse_ms: float

    @property
    def sparse(self) -> bool:
        """True if skipping empty quads was faster."""
        return self.sparse_ms < self.dense_ms


@dataclass(frozen=True)
class TuneReport:
    """Every layer that was timed. cached: the times come from the cache file. str() is a table."""

    rows: tuple[Tuned, ...]
    cached: bool

    @property
    def choices(self) -> dict[int, bool]:
        """By node: skip empty quads or not."""
        return {row.node: row.sparse for row in self.rows}

    def __str__(self) -> str:
        """One line per layer, the faster loop named."""
        cells = [
            (
                row.name,
                f"{row.density:.1%}",
                f"{row.dense_ms:.4f}",
                f"{row.sparse_ms:.4f}",
                "sparse" if row.sparse else "dense",
            )
            for row in self.rows
        ]
        note = "times from the cache file" if self.cached else "times measured now"
        columns = ("layer", "quads", "dense ms", "sparse ms", "choice")
        return str(Table(columns, cells, notes=(note,), words=("choice",)))


def tune(
    graph: Graph,
    x: NDArray[np.float32],
    repeats: int = 20,
    cache: str | os.PathLike[str] | None = None,
) -> TuneReport:
    """Median times of every layer with integer input, over `repeats` runs of both kinds on x.

    x, float32 [N, C, H, W] or [N, K], must fit the program. cache: see Program.tune. Raises
    BadConfig for repeats < 1, FormatError for a cache that is damaged.
    """
    if type(repeats) is not int or repeats < 1:
        raise BadConfig(need("repeats >= 1 for tune", repr(repeats), "Use 20."))
    known = {} if cache is None else _read(Path(cache))
    key = _key(graph, x.shape) if cache is not None else ""
    nodes = [
        i
        for i, node in enumerate(graph.nodes)
        if node.operator.is_layer and graph.values[node.inputs[0]].y is not None
    ]
    if key in known:
        return TuneReport(_parse(known[key], nodes, cache), cached=True)
    rows = _measure(graph, x, repeats, nodes)
    if cache is not None:
        known[key] = [asdict(row) for row in rows]
        text = json.dumps({"version": _VERSION, "programs": known}, indent=1)
        replace_file(cache, lambda path: path.write_text(text, encoding="utf-8"))
    return TuneReport(rows, cached=False)


def _measure(
    graph: Graph, x: NDArray[np.float32], repeats: int, nodes: list[int]
) -> tuple[Tuned, ...]:
    """Time both engines in turns, so that a slow moment of the machine hits both."""
    engines = {sparse: build(graph, dict.fromkeys(nodes, sparse)) for sparse in (False, True)}
    times: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(-(-repeats // _PER_ROUND) + 1):
        for sparse, engine in engines.items():
            times[sparse].append([float(t["ms"]) for t in engine.profile(x, _PER_ROUND)])
    dense, sparse_ = (
        [statistics.median(ms) for ms in zip(*times[kind][1:], strict=True)]
        for kind in (False, True)
    )
    rows = []
    for i in nodes:
        w = graph.weight(graph.nodes[i])
        rows.append(Tuned(i, w.name, w.density, dense[i], sparse_[i]))
    return tuple(rows)


def _key(graph: Graph, shape: tuple[int, ...]) -> str:
    """A program's content, the machine as far as it decides the times, and the shape."""
    core = _native.core()
    digest = hashlib.sha256(json.dumps(to_index(graph), sort_keys=True).encode())
    for name, kept in sorted(to_arrays(graph).items()):
        array = to_array(kept)
        digest.update(f"{name} {array.shape}".encode() + array.tobytes())
    parts = (
        digest.hexdigest()[:32],
        processor(),
        core.isa(),
        f"{core.num_threads()} threads",
        "x".join(map(str, shape)),
        core.version,
    )
    return " | ".join(parts)


def _read(path: Path) -> dict[str, Any]:
    """Entries of a cache file; none if there is no file."""
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        document = None
    programs = document.get("programs") if isinstance(document, dict) else None
    if not isinstance(programs, dict) or document.get("version") != _VERSION:
        raise _damaged(path)
    return programs


def _parse(rows: Any, nodes: list[int], path: Any) -> tuple[Tuned, ...]:
    try:
        parsed = tuple(Tuned(**row) for row in rows)
        fits = [row.node for row in parsed] == nodes
        numbers = all(
            type(v) in (int, float)
            for row in parsed
            for v in (row.density, row.dense_ms, row.sparse_ms)
        )
    except TypeError:
        fits = numbers = False
    if not (fits and numbers):
        raise _damaged(path)
    return parsed


def _damaged(path: Any) -> FormatError:
    what = f"tuning results of version {_VERSION} in {path}"
    return FormatError(need(what, "something else", "Delete it, or name another file."))

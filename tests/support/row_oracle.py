# SPDX-License-Identifier: Apache-2.0
"""Which rows each reader needs, and whether a schedule of bands still has them in memory then.

Independent of the engine's own arithmetic: windows are listed tap by tap from the definition of
each operator, and resizing is asked of the NumPy reference with images of one bright row.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from engine_access import Array, Graph, Schedule, Task, reference

Shapes = list[tuple[int, ...]]
_IN_PLACE = ("activation", "add", "mul", "clamp")


class RowError(AssertionError):
    """A row that is read, written or kept where it must not be."""


@lru_cache(maxsize=512)
def _resized(size: int, out: int, mode: str, align: bool, zoom: float | None) -> list[list[int]]:
    """Input rows with a share in each output row."""
    bright = np.eye(size, dtype=np.float32).reshape(1, size, size, 1)
    zooms = None if zoom is None else (zoom, 1.0)
    made = np.asarray(reference.resize(bright, (out, 1), mode, align, zooms))
    return [np.flatnonzero(made[0, :, y, 0]).tolist() for y in range(out)]


def _numbered(shape: tuple[int, ...]) -> Array:
    """An image of the numbers of its rows."""
    rows = np.arange(shape[-2], dtype=np.float32)[:, None]
    return np.broadcast_to(rows, shape).copy()


def _seen(made: Array) -> list[list[int]]:
    """The numbers of rows in each row of an image."""
    rows = (np.unique(made[0, :, y]) for y in range(made.shape[2]))
    return [[int(v) for v in numbers if v >= 0] for numbers in rows]


@lru_cache(maxsize=512)
def _padded(size: tuple[int, int], *how: Any) -> list[list[int]]:
    return _seen(reference.pad(_numbered((1, 1, *size)), *how, value=-1.0))


@lru_cache(maxsize=512)
def _rearranged(shape: tuple[int, ...], made: tuple[int, ...], *how: Any) -> list[list[int]]:
    """Sizes of factors follow from those of both images."""
    split, order, axes = how
    sizes: list[int] = []
    for factors, size in zip(split, shape[1:], strict=True):
        known = math.prod(f for f in factors if f > 0)
        sizes += [f if f > 0 else size // known for f in factors]
    out = reference.rearrange(_numbered((1, *shape[1:])), sizes, order, axes)
    if out.shape[1:] != made[1:]:
        raise RowError(f"a rearrange makes {out.shape}, not {made}")
    return _seen(out)


def rows_needed(graph: Graph, value: int, which: int, row: int, shapes: Shapes) -> list[int]:
    """Rows of the `which`-th input that row `row` of a value is made from; rows outside of the
    image are padding that has to lie in memory.
    """
    node, at = graph.nodes[value], graph.nodes[value].attrs
    height = shapes[node.inputs[which]][2]
    if node.op == "conv2d" and which == 0:
        taps = graph.weight(node).shape[1]
        first = row * at["stride"][0] - at["padding"][0]
        return [first + at["dilation"][0] * r for r in range(taps)]
    if node.op in ("max_pool2d", "avg_pool2d"):
        first, gap = row * at["stride"][0] - at["padding"][0], at.get("dilation", (1, 1))[0]
        taken = [first + gap * r for r in range(at["kernel"][0])]
        return [y for y in taken if 0 <= y < height]
    if node.op == "pixel_shuffle":
        return [row // at["factor"][0]]
    if node.op == "pixel_unshuffle":
        return [row * at["factor"][0] + r for r in range(at["factor"][0])]
    if which in node.operator.sized_by:
        return []
    if node.op in ("add", "mul") and height == 1:
        return [0]
    if node.op == "crop":
        return [at["begin"][0] + row * (at["step"] or (1, 1))[0]]
    if node.op == "pad":
        ends = at["before"], at["after"], at["mode"]
        return list(_padded(shapes[node.inputs[0]][2:], *ends)[row])
    if node.op == "rearrange":
        how = at["split"], at["order"], at["axes"]
        return list(_rearranged(shapes[node.inputs[0]], shapes[value], *how)[row])
    if node.op == "resize":
        out = shapes[value][2]
        zoom = None if at["zoom"] is None else at["zoom"][0]
        return _resized(height, out, at["mode"], at["align"], zoom)[row]
    return [row]


class _Memory:
    """Rows of the values in one memory, as a window that moves down the image."""

    def __init__(self, capacity: int) -> None:
        self.first, self.kept, self.capacity = 0, 0, capacity  # padded rows


class _Run:
    """Follow the tasks of a schedule; raise RowError at the first wrong one."""

    def __init__(self, graph: Graph, shapes: Shapes, schedule: Schedule) -> None:
        self.graph, self.shapes, self.places = graph, shapes, schedule.places
        self.done = [0] * len(graph.nodes)
        self.rows: list[set[int]] = [set() for _ in graph.nodes]  # padded rows that are there
        self.memories = {p.memory: _Memory(p.capacity) for p in self.places if p.memory >= 0}
        for task in schedule.tasks:
            self._move(task)
            for row in range(task.begin, task.end):
                self._read(task.value, row)
            self._write(task)
        height = shapes[-1][2]
        if self.done[-1] != height:
            raise RowError(f"the output has {self.done[-1]} of {height} rows")

    def _move(self, task: Task) -> None:
        place = self.places[task.value]
        if place.memory < 0 or not task.drop:
            return
        memory = self.memories[place.memory]
        memory.first += task.drop
        kept = range(memory.first, memory.first + task.keep)
        if task.keep < 0 or task.keep > memory.capacity:
            raise RowError(f"{task}: keeps {task.keep} of {memory.capacity} rows")
        for other, p in enumerate(self.places):
            if p.memory == place.memory:
                self.rows[other] &= set(kept)

    def _read(self, value: int, row: int) -> None:
        node = self.graph.nodes[value]
        for which, source in enumerate(node.inputs):
            place = self.places[source]
            if place.memory < 0:
                continue
            for need in rows_needed(self.graph, value, which, row, self.shapes):
                if need + place.margin not in self.rows[source]:
                    had = f"{self.done[source]} rows made, {sorted(self.rows[source])[:1]}.. kept"
                    raise RowError(
                        f"row {row} of {value} ({node.op}) reads row {need} of {source} "
                        f"({self.graph.nodes[source].op}): {had}, margin {place.margin}"
                    )

    def _write(self, task: Task) -> None:
        value, place = task.value, self.places[task.value]
        if task.begin != self.done[value] or not task.begin < task.end <= place.rows:
            raise RowError(f"{task}: {self.done[value]} of {place.rows} rows were made before")
        self.done[value] = task.end
        written = set(range(task.begin + place.margin, task.end + place.margin))
        if task.begin == 0:
            written |= set(range(place.margin))
        if task.end == place.rows:
            written |= set(range(task.end + place.margin, task.end + 2 * place.margin))
        if place.memory < 0:
            return
        memory = self.memories[place.memory]
        if min(written) < memory.first or max(written) >= memory.first + memory.capacity:
            window = f"{memory.first}..{memory.first + memory.capacity}"
            raise RowError(f"{task}: rows {min(written)}..{max(written)} in a memory of {window}")
        self.rows[value] |= written
        if self._in_place(value):
            self.rows[self.graph.nodes[value].inputs[0]] -= written

    def _in_place(self, value: int) -> bool:
        """Cells of the result where those of the first operand lay; parts of a concat lie beside
        each other.
        """
        node, own = self.graph.nodes[value], self.places[value].memory
        if node.op not in _IN_PLACE or self.places[node.inputs[0]].memory != own:
            return False
        return not any(
            other.op == "concat" and place.memory == own and value in other.inputs
            for other, place in zip(self.graph.nodes, self.places, strict=True)
        )


def check_schedule(graph: Graph, shapes: Shapes, schedule: Schedule) -> None:
    """Raise RowError unless every row that is read is there, and every row has a place."""
    _Run(graph, shapes, schedule)

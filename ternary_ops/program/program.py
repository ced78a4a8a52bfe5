# SPDX-License-Identifier: Apache-2.0
"""Program: a valid graph, its native engine, and what can be asked of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops import _native
from ternary_ops.errors import BadConfig, UnsupportedShape, check_type, need
from ternary_ops.program import peak, program_file, summary
from ternary_ops.program.autotune import TuneReport, tune
from ternary_ops.program.compact import round_vectors
from ternary_ops.program.cpu import isa
from ternary_ops.program.graph import Graph
from ternary_ops.program.native import build
from ternary_ops.program.shapes import Shape, infer_from, sizes_of
from ternary_ops.program.statistics import Statistics, pixels
from ternary_ops.program.weight import Array

_KNOWN_SHAPES = 64
_TAKEN = {2: "NC", 3: "NLC", 4: "NCHW"}  # axes of the input, by rank


def load(path: str | os.PathLike[str]) -> Program:
    """Read a file that Program.save or `ternary-ops compress` wrote.

    Raises FormatError when it is anything else, damaged, or of an unknown version.

    >>> tops.compile(model, x).save("net.safetensors")
    >>> program = tops.runtime.load("net.safetensors")
    >>> program(x.numpy()).shape  # no torch from here on
    (2, 10)
    """
    graph, sample = program_file.read(Path(path))
    return Program(graph, sample)


class Program:
    """A network that runs natively: call it with one batch, get one array.

    N, H and W may change from call to call (each new size is planned once); channels are fixed.
    Safe to share between threads.

    >>> program = tops.compile(model, x)
    >>> y = program(x.numpy())
    >>> y.dtype, bool(np.array_equal(y[:1], program(x[:1].numpy())))  # the batch does not matter
    (dtype('float32'), True)
    """

    def __init__(self, graph: Graph, sample: Sequence[int]) -> None:
        """Wrap a valid graph; `sample` is the input shape of summary() and info()."""
        self.graph = graph
        self.sample = tuple(sample)
        self._shapes: dict[Shape, list[Shape]] = {}
        self._tuned: dict[str, Any] = {}  # engines by instruction set
        self._shapes_of(self.sample)

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Run x, [N, C, H, W] ([N, L, C] tokens, [N, K] rows), and return float32.

        float16, float64 and uint8 are converted to float32 by value: divide images by 255 first if
        the network was trained so. Where values are quantized, NaN becomes code 0, the low end of
        the range. Any memory layout is accepted. Raises UnsupportedShape.
        """
        y: NDArray[np.float32] = self._engine.run(self._accept(x))
        return y

    def trace(self, x: NDArray[Any]) -> list[Array]:
        """Every node's value for x: uint8 or float32, [N, C, H, W], [N, L, C] or [N, K]."""
        return list(self._engine.run_all(self._accept(x)))

    def statistics(self, x: NDArray[Any]) -> Statistics:
        """Run x, and of every uint8 node add up each channel's codes and squares, image by image.

        Exact integers, padding excluded: the same on every instruction set, thread count, band and
        batch, and what sums over `trace(x)` give. The output keeps its bits. Raises
        UnsupportedShape.
        """
        x = self._accept(x)
        output, sums, squares, offsets = self._engine.statistics(x)
        counts = tuple(pixels(shape) for shape in self._shapes_of(x.shape))
        return Statistics(output, sums, squares, tuple(offsets), counts)

    def profile(self, x: NDArray[Any], repeats: int = 10) -> list[dict[str, Any]]:
        """Profile: the rows of `summary.rows` by node, and "ms", the median of `repeats` runs.

        For layers also "gmac_s", dense multiply-adds in that time, and "of_ceiling": that as a
        fraction of the cores' peak (`program.peak`; above 1 where zeros are skipped).
        """
        x = self._accept(x)
        check_type("repeats", repeats, int, "Use 10.")
        if repeats < 1:
            raise BadConfig(need("repeats >= 1 for profile", repeats, "Use 10."))
        rows = summary.rows(self.graph, self._shapes_of(x.shape))
        timed = self._engine.profile(x, repeats)
        peaks = peak.known_products(isa())
        threads = _native.core().num_threads()
        return [
            {**row, **summary.speed(row, float(t["ms"]), peaks, threads)}
            for row, t in zip(rows, timed, strict=True)
        ]

    def tune(
        self, x: NDArray[Any], repeats: int = 20, cache: str | os.PathLike[str] | None = None
    ) -> TuneReport:
        """Time every integer layer dense and sparse for x, and use the faster from now on.

        Results keep their bits. The choice holds for this object and the present instruction set;
        copies, files and other machines choose by density, as untuned programs do. It is made for
        the shape of x and the present number of threads, and then used for every shape.

        cache: a JSON file of earlier choices. What it knows of this program, processor, instruction
        set, thread count and shape is taken without timing; otherwise the outcome is added to it.

        Raises UnsupportedShape, BadConfig for repeats < 1, FormatError for a cache that is damaged.
        """
        found = tune(self.graph, self._accept(x), repeats, cache)
        self._tuned[isa()] = build(self.graph, found.choices)
        return found

    def rounded(self) -> Program:
        """A copy whose scales and biases have 8 significant bits, for a smaller file.

        Integer layers only. A value changes by at most one part in 256, the step of quantized
        activations; in a small network's file these vectors take a fifth, and less than half of
        that is left. Evaluate the copy: its outputs are no longer those of the trained network.
        """
        return Program(round_vectors(self.graph), self.sample)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file of kind "program", atomically."""
        program_file.write(Path(path), self.graph, self.sample)

    def summary(self) -> str:
        """A table of the nodes for the sample shape, one line each, with totals."""
        return str(summary.table(self.graph, self._shapes_of(self.sample)))

    def info(self) -> dict[str, Any]:
        """Totals for the sample shape: what `summary.totals` says, and "peak_bytes" of memory."""
        totals = summary.totals(self.graph, self._shapes_of(self.sample))
        return {**totals, "peak_bytes": self.peak_bytes(self.sample)}

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the result for an input of this shape; raises UnsupportedShape."""
        return self._shapes_of(shape)[-1]

    def peak_bytes(self, shape: Shape) -> int:
        """Memory that values take while an input of this shape runs; raises UnsupportedShape."""
        self._shapes_of(shape)
        h, w = (1, 1, *sizes_of(shape))[-2:]  # tokens lie in memory as one row of pixels
        return int(self._engine.peak_bytes(shape[0], h, w))

    @property
    def channels(self) -> int:
        """C (or K) of the input."""
        count: int = self.graph.nodes[0].attrs["c"]
        return count

    @property
    def rank(self) -> int:
        """Axes of the input: 4 for images, 3 for tokens, 2 for rows."""
        return self.graph.values[0].rank

    def __repr__(self) -> str:
        """Ends and size."""
        return f"Program({len(self.graph.nodes)} nodes, input {list(self.sample)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the graph; the engine is built anew."""
        return Program, (self.graph, self.sample)

    @property
    def _engine(self) -> Any:
        tuned = self._tuned.get(isa()) if self._tuned else None
        return self._untuned if tuned is None else tuned

    @cached_property
    def _untuned(self) -> Any:
        return build(self.graph)

    def _accept(self, x: Any) -> NDArray[np.float32]:
        if not isinstance(x, np.ndarray):
            raise UnsupportedShape(
                need("a NumPy array as a program's input", type(x).__name__, "Pass x.numpy().")
            )
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            raise UnsupportedShape(
                need("floats or uint8 as a program's input", x.dtype, "Pass x.astype(np.float32).")
            )
        self._shapes_of(x.shape)
        with np.errstate(over="ignore"):  # a float64 beyond float32 is an infinity
            return np.ascontiguousarray(x, np.float32)

    def _shapes_of(self, shape: Shape) -> list[Shape]:
        """Every node's shape for an input shape, checked once a shape."""
        known = self._shapes.get(shape)
        if known is None:
            taken = _TAKEN[self.rank]
            if len(shape) != self.rank or shape[taken.index("C")] != self.channels:
                wanted = ", ".join(taken).replace("C", str(self.channels))
                do = "Add a missing batch axis with x[None]; channels are those of the network."
                raise UnsupportedShape(
                    need(f"an input [{wanted}] of this program", list(shape), do)
                )
            known = infer_from(self.graph, shape)
            if len(self._shapes) >= _KNOWN_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = known
        return known

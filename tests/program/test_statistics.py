# SPDX-License-Identifier: Apache-2.0
"""Channel totals of a run equal sums over the trace: every operator, batch, band, thread, ISA."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import PROGRAMS, Builder, example, random_program

from ternary_ops import runtime
from ternary_ops.errors import BadConfig, UnsupportedShape
from ternary_ops.program.graph import Graph
from ternary_ops.program.shapes import infer

ISAS = runtime.available_isas()


def totals(value: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums and sums of squares [N, C] of a value [N, C, H, W], [N, L, C] or [N, C]."""
    axes = {4: (2, 3), 3: (1,), 2: ()}[value.ndim]
    codes = value.astype(np.int64)
    return codes.sum(axis=axes), (codes * codes).sum(axis=axes)


def check(program: runtime.Program, x: NDArray[np.float32]) -> int:
    """Compare every node; returns how many are integers."""
    found, values = program.statistics(x), program.trace(x)
    np.testing.assert_array_equal(found.output, program(x))
    nodes = [i for i, value in enumerate(values) if value.dtype == np.uint8]
    assert found.nodes() == nodes
    for i in nodes:
        for got, wanted in zip(found.node(i), totals(values[i]), strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=f"node {i}")
    counts = [values[i].size // (values[i].shape[0] * found.node(i)[0].shape[1]) for i in nodes]
    assert [found.pixels[i] for i in nodes] == counts
    return len(nodes)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_operator(name: str) -> None:
    graph = PROGRAMS[name]()
    program = runtime.Program(graph, example(graph, 1, 12, 14).shape)
    isa = ISAS[len(name) % len(ISAS)]
    with runtime.force_isa(isa):
        check(program, example(graph, 3, 13, 17, seed=1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_batches_and_odd_sizes(isa: str, threads: int) -> None:
    graph = PROGRAMS["image"]()
    program = runtime.Program(graph, (1, 3, 16, 16))
    with runtime.force_isa(isa), runtime.num_threads(threads):
        for n, h, w in ((1, 33, 29), (5, 9, 47), (2, 64, 5)):
            x = example(graph, n, h, w)
            assert check(program, x) >= 8
            whole = program.statistics(x)
            for i in range(n):
                alone = program.statistics(x[i : i + 1])
                np.testing.assert_array_equal(alone.sums[0], whole.sums[i])
                np.testing.assert_array_equal(alone.squares[0], whole.squares[i])


def banded() -> Graph:
    """Halos, a stride, an in-place function, a concatenation in place; streamed where wide."""
    b = Builder(3, c=3)
    y = {"y": b.params()}
    x = b("quantize", 0, **y)
    x = b("conv2d", x, w=b.weight("int8", 12, 3, 3, 3), padding=(1, 1), **y)
    v = b("activation", x, fn="silu", y=b.params(-0.4))
    v = b("conv2d", v, w=b.weight("ternary", 8, 12, 3, 3), stride=(2, 2), padding=(1, 1), **y)
    v = b("resize", v, x, mode="nearest")
    v = b("concat", v, x, **y)
    b("conv2d", v, w=b.weight("ternary", 5, 20, 5, 3), padding=(2, 1))
    return b.graph()


@pytest.mark.parametrize("band", [1, 3, 16])
@pytest.mark.parametrize("threads", [1, 3])
def test_bands(band: int, threads: int) -> None:
    graph = banded()
    program = runtime.Program(graph, (1, 3, 64, 64))
    program._engine.debug(band=band, poison=True)
    x = example(graph, 2, 61, 70)
    assert program._engine.band(61, 70) == band
    with runtime.num_threads(threads):
        assert check(program, x) == 6


def test_random_networks() -> None:
    banded = 0
    for seed in range(40):
        graph = random_program(seed)
        try:
            infer(graph, 2, 31, 27)
        except UnsupportedShape:
            continue
        banded += (
            check(
                runtime.Program(graph, (2, graph.nodes[0].attrs["c"], 31, 27)),
                example(graph, 2, 31, 27, seed),
            )
            > 0
        )
    assert banded >= 15


@pytest.mark.parametrize("isa", ISAS)
def test_sums_do_not_overflow(isa: str) -> None:
    """Channels at 255 of so many pixels that sums of squares leave 32 bits."""
    b = Builder(0, c=4)
    b("dequantize", b("quantize", 0, y=(0.01, 0)))
    program = runtime.Program(b.graph(), (1, 4, 8, 8))
    x = np.full((1, 4, 640, 700), 9.0, np.float32)
    with runtime.force_isa(isa):
        found = program.statistics(x)
    assert (found.sums == 255 * 640 * 700).all()
    assert (found.squares == 255 * 255 * 640 * 700).all()


def test_a_node_of_floats_is_refused() -> None:
    graph = PROGRAMS["image"]()
    found = runtime.Program(graph, (1, 3, 16, 16)).statistics(example(graph, 2, 16, 16))
    assert found.counts().shape == found.sums.shape[1:]
    for node in (0, -1, len(graph.nodes) - 1, len(graph.nodes)):
        with pytest.raises(BadConfig, match="a node that makes uint8"):
            found.node(node)

# SPDX-License-Identifier: Apache-2.0
"""Images that go through a network a few rows at a time: the same bits, memory by their width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import Builder, example, random_program

from ternary_ops import runtime
from ternary_ops.errors import UnsupportedShape
from ternary_ops.program.graph import Graph
from ternary_ops.program.native import build
from ternary_ops.program.shapes import infer


def whole(engine: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output where every value is kept as a whole."""
    last: NDArray[np.float32] = engine.run_all(x)[-1]
    return last


def check(graph: Graph, x: NDArray[np.float32]) -> bool:
    """Compare; True: it went in bands."""
    engine = build(graph)
    np.testing.assert_array_equal(engine.run(x), whole(engine, x))
    return bool(engine.band(*x.shape[2:]))


@pytest.mark.parametrize("part", range(8))
def test_random_programs_give_the_same_bits(part: int) -> None:
    banded = 0
    for seed in range(part * 30, part * 30 + 30):
        graph = random_program(seed)
        draw = np.random.default_rng(seed)
        h, w = int(draw.integers(60, 260)), int(draw.integers(60, 260))
        x = example(graph, 1, h, w, seed)
        try:
            infer(graph, *(1, h, w))
        except UnsupportedShape:
            continue
        banded += check(graph, x)
    assert banded >= 3


def attention(kind: str, seed: int = 0) -> Graph:
    """A branch that sees far, by strides, a pool and a resize, beside one that waits for it; with
    paddings on all sides, large ones, and filters that cells of few channels share.
    """
    b = Builder(seed, c=3)
    integer = kind != "float"
    y = {"y": b.params()} if integer else {}
    x = b("quantize", 0, y=b.params()) if integer else 0
    x = b("conv2d", x, w=b.weight(kind, 12, 3, 3, 3), padding=(1, 1), **y)
    v = b("conv2d", x, w=b.weight(kind, 8, 12, 3, 3), stride=(2, 2), **y)
    v = b("max_pool2d", v, kernel=(7, 7), stride=(3, 3))
    v = b("conv2d", v, w=b.weight(kind, 8, 8, 3, 3, slopes=8), padding=(1, 1), **y)
    v = b("resize", v, x, mode="bilinear")
    v = b("conv2d", v, x, w=b.weight(kind, 12, 8), **y)
    v = b("activation", v, fn="sigmoid", **({"y": b.params(0, 1)} if integer else {}))
    v = b("mul", x, v, **y)
    v = b("add", v, x, **y)
    v = b("conv2d", v, w=b.weight(kind, 12, 12, 5, 3), padding=(9, 12), dilation=(4, 2), **y)
    v = b("conv2d", v, w=b.weight(kind, 12, 1, 3, 3), padding=(1, 1), groups=12, **y)
    v = b("conv2d", v, w=b.weight(kind, 27, 12, 3, 3, zeros=0.9), padding=(0, 1))
    b("pixel_shuffle", v, factor=(3, 3))
    return b.graph()


@pytest.mark.parametrize("size", [(61, 190), (211, 83), (64, 128), (150, 151)])
@pytest.mark.parametrize("kind", ["float", "int8", "ternary"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_far_sight_gives_the_same_bits(
    kind: str, size: tuple[int, int], threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERNARY_OPS_NUM_THREADS", threads)
    graph = attention(kind, sum(size))
    assert check(graph, example(graph, 1, *size, 1))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_borders_and_rows_that_move_go_in_bands(mode: str, integer: bool) -> None:
    """Rows that are mirrored or repeated, channels that become rows, columns side by side; those
    of a circle alone, since its first row reads the last one.
    """
    b = Builder(6, c=3)
    kind, y = ("int8", {"y": b.params()}) if integer else ("float", {})
    x = b("quantize", 0, **y) if integer else 0
    x = b("conv2d", x, w=b.weight(kind, 12, 3, 3, 3), padding=(1, 1), **y)
    rows = 0 if mode == "circular" else 5
    v = b("pad", x, before=(rows, 2), after=(rows - rows // 4, 3), mode=mode)
    v = b("conv2d", v, w=b.weight(kind, 12, 12, 3, 3), **y)
    split = ((6, 2), (-1,), (-1,))
    v = b("rearrange", v, split=split, order=(0, 2, 1, 3), axes=(1, 2, 1), rank=4)
    v = b("crop", v, begin=(3, 1), end=(2, 0), step=(2, 1))
    v = b("concat", v, b("pad", v, before=(0, 1), after=(0, 1)), axis=3, **y)
    b("conv2d", v, w=b.weight(kind, 9, 6, 3, 3))
    graph = b.graph()
    for h, w in ((150, 131), (97, 210)):
        assert check(graph, example(graph, 1, h, w))


def test_every_image_of_a_batch_goes_in_bands() -> None:
    graph = attention("int8")
    engine = build(graph)
    x = example(graph, 3, 120, 100)
    together = engine.run(x)
    for i in range(3):
        np.testing.assert_array_equal(together[i : i + 1], whole(engine, x[i : i + 1]))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_memory_does_not_grow_with_the_height(kind: str) -> None:
    program = runtime.Program(attention(kind), sample=(1, 3, 64, 64))
    low, high, wide = (
        program.peak_bytes((1, 3, h, w)) for h, w in ((300, 200), (3000, 200), (300, 400))
    )
    assert high <= low * 1.2
    assert low < wide < low * 2.5


def test_what_sees_the_whole_image_is_kept_whole() -> None:
    b = Builder(0, c=3)
    x = b("conv2d", 0, w=b.weight("float", 16, 3, 3, 3), padding=(1, 1))
    gate = b("adaptive_avg_pool2d", x, size=(1, 1))
    b("mul", x, gate)
    graph = b.graph()
    assert not check(graph, example(graph, 1, 150, 150))


def test_small_images_are_kept_whole() -> None:
    graph = attention("int8")
    assert not check(graph, example(graph, 1, 32, 32))


def test_time_is_told_of_every_node_once() -> None:
    graph = attention("int8")
    rows = build(graph).profile(example(graph, 1, 150, 151), 2)
    assert len(rows) == len(graph.nodes)
    assert all(row["ms"] > 0 for row in rows[1:])


@pytest.mark.parametrize("factor", [(1, 1), (2, 5), (4, 3)])
def test_an_output_that_a_strided_layer_would_pad(factor: tuple[int, int]) -> None:
    """The caller's array has no padding where other images of the size have."""
    b = Builder(3, c=8)
    x = b("conv2d", 0, w=b.weight("float", 10, 8))
    v = b("conv2d", x, w=b.weight("float", 6, 10, 3, 3), padding=(1, 1), stride=(2, 2))
    v = b("resize", v, x, mode="bilinear")
    v = b("conv2d", v, w=b.weight("float", 10, 6))
    v = b("mul", v, x)
    v = b("conv2d", v, x, w=b.weight("float", 10, 10))
    if factor != (1, 1):
        v = b("conv2d", v, w=b.weight("float", 3 * factor[0] * factor[1], 10))
        b("pixel_shuffle", v, factor=factor, crop=(0, factor[1] - 1))
    graph = b.graph()
    for h, w in ((231, 97), (190, 200)):
        assert check(graph, example(graph, 1, h, w))

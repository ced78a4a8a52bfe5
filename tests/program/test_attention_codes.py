# SPDX-License-Identifier: Apache-2.0
"""Attention whose queries, keys and values are codes: NumPy's bits on every instruction set, number
of threads and company of images, and what its shares of eight bits cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_access import running
from programs import Builder

from ternary_ops import reference, runtime
from ternary_ops.errors import FormatError
from ternary_ops.program.graph import Graph
from ternary_ops.program.interpret import simulate
from ternary_ops.program.weight import Weight

# (heads, channels of a query, of a value, keys, queries): one of each, odd ones, and more keys than
# the scores of a vector of queries leave room for in what the engine keeps of them at once.
SHAPES = ((1, 4, 4, 1, 1), (3, 4, 12, 17, 13), (2, 8, 24, 9, 200), (1, 4, 4, 2100, 37))


def program(shape: tuple[int, ...], bias: bool, codes: bool) -> Graph:
    heads, depth, width, keys, queries = shape
    y = (0.04 / keys, 131) if codes else None  # of means of so many values
    few = keys**-0.5  # how large the builder's numbers are
    b = Builder(0, c=heads * depth, rank=3)
    sizes = [(heads * depth, keys), (heads * width, keys), (heads * keys, queries)]
    weights = [b.weight("float", c, 1, 1, tokens, False, 0.0) for c, tokens in sizes[: 2 + bias]]
    parts = [b("constant", 0, w=w, rank=3) for w in weights]
    q = b("quantize", 0, y=(0.03, 120))
    k, v = (b("quantize", x, y=b.params(-2 * few, 3 * few)) for x in parts[:2])
    made = b("attention", q, k, v, *parts[2:], heads=heads, tokens=keys, scale=0.4, y=y)
    if y is not None:
        b("dequantize", made)
    return b.graph()


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "floats"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpys_bits_everywhere(shape: tuple[int, ...], bias: bool, codes: bool) -> None:
    graph = program(shape, bias, codes)
    heads, depth, *_, queries = shape
    x = np.random.default_rng(1).standard_normal((2, queries, heads * depth)).astype(np.float32)
    wanted = simulate(graph, x)[-1]
    assert np.unique(wanted).size > min(3, wanted.size // 8)
    for isa in runtime.available_isas():
        for threads in (1, 2, 7):
            with running(isa, threads):
                np.testing.assert_array_equal(runtime.Program(graph, x.shape)(x), wanted)
        with running(isa, 1):
            alone = runtime.Program(graph, x[1:].shape)(x[1:])
        np.testing.assert_array_equal(alone, wanted[1:])


def _near(codes: Any, floats: Any) -> float:
    return float(np.abs(codes - floats).max() / np.abs(floats).max())


@pytest.mark.parametrize("loudness", [0.0, 3.0, 6.5, 9.0])
def test_quiet_keys_keep_their_sum(loudness: float) -> None:
    """One key beside 300, of which each gets a share of it that rounds to nothing at 6.5: they
    have a third of all shares.
    """
    rng, keys = np.random.default_rng(0), 301
    k = np.zeros((1, 4, keys), np.uint8) + np.uint8(100)
    k[:, :, 0] += np.uint8(round(10 * loudness))
    v = rng.integers(150, 250, (1, 4, keys)).astype(np.uint8)
    v[:, :, 0] = 20
    q = (np.full((1, 4, 3), 110, np.uint8), 0.1, 100)
    given = q, (k, 0.025, 100), (v, 0.01, 100)
    floats = [(x.astype(np.float32) - zp) * np.float32(s) for x, s, zp in given]
    wanted = reference.attention(*floats, heads=1, scale=1.0)
    found = reference.attention_codes(*given, heads=1, scale=1.0, y=None)
    assert np.abs(found - wanted).max() < 0.005 * np.abs(floats[2]).max()


def test_masked_keys_count_nothing() -> None:
    """Scores that a mask takes far down, as those of shifted windows are."""
    b = Builder(0, c=4, rank=3)
    parts = [b("constant", 0, w=b.weight("float", 4, 1, 1, 9, False, 0.0), rank=3) for _ in "kv"]
    mask = np.zeros((9, 1, 6, 1), np.float32)
    mask[1:4, 0, 2] = -3e38
    mask[3, 0, 1] = -100.0
    b.weights.append(Weight("mask", "float", mask))
    q = b("quantize", 0, y=(0.03, 120))
    codes = [b("quantize", x, y=(0.02, 100)) for x in parts]
    b("attention", q, *codes, b("constant", 0, w=2, rank=3), tokens=9)
    graph = b.graph()
    x = np.random.default_rng(0).standard_normal((1, 6, 4)).astype(np.float32)
    values = simulate(graph, x)
    floats = [reference.dequantize(values[i], *graph.values[i].y) for i in (q, *codes)]
    wanted = reference.attention(
        *(f.swapaxes(1, 2) for f in floats), mask[None, :, 0, :, 0], heads=1, scale=1.0
    )
    assert _near(values[-1], wanted.swapaxes(1, 2)) < 0.01
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            np.testing.assert_array_equal(runtime.Program(graph, x.shape)(x), values[-1])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"heads": 3}, "divisible by 12"), ({"heads": 4}, "divisible by 16")],
)
def test_heads_need_whole_packets(change: dict[str, int], named: str) -> None:
    b = Builder(0, c=8, rank=3)
    q = b("quantize", 0, y=(0.03, 120))
    b("attention", q, q, q, **{"tokens": 5, **change})
    with pytest.raises(FormatError, match=named):
        b.graph()


def test_one_kind_of_operands() -> None:
    b = Builder(0, c=8, rank=3)
    q = b("quantize", 0, y=(0.03, 120))
    b("attention", q, 0, q, tokens=5)
    with pytest.raises(FormatError, match="of one kind"):
        b.graph()

# SPDX-License-Identifier: Apache-2.0
"""Attention as one operator: any shape, the same bits on every number of threads and company of
images, scores in no value.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases import token_attention as cases
from engine_access import running
from programs import Builder

from ternary_ops import reference, runtime
from ternary_ops.errors import FormatError, UnsupportedShape
from ternary_ops.program.graph import Graph
from ternary_ops.program.weight import Weight

EPS = float(np.finfo(np.float32).eps)


def program(shape: tuple[int, ...], bias: bool) -> Graph:
    heads, depth, width, keys, queries = shape
    b = Builder(0, c=heads * depth, rank=3)
    sizes = [(heads * depth, keys), (heads * width, keys), (heads * keys, queries)]
    weights = [b.weight("float", c, 1, 1, tokens, False, 0.0) for c, tokens in sizes[: 2 + bias]]
    parts = [b("constant", 0, w=w, rank=3) for w in weights]
    b("attention", 0, *parts, heads=heads, tokens=keys, scale=depth**-0.5)
    return b.graph()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", cases.SHAPES, ids=str)
def test_within_a_bound_and_of_the_same_bits(shape: tuple[int, ...], bias: bool) -> None:
    graph = program(shape, bias)
    heads, depth, _, keys, queries = shape
    x = np.random.default_rng(1).standard_normal((2, queries, heads * depth)).astype(np.float32)
    k, v, *rest = (np.tile(w.array[:, 0, :, 0], (2, 1, 1)) for w in graph.weights)
    at = {"heads": heads, "scale": depth**-0.5}
    wanted = reference.attention(x.swapaxes(1, 2), k, v, *rest, **at).swapaxes(1, 2)
    sums = np.abs(x).max() * np.abs(k).max() * depth**0.5
    size = sums + max((float(np.abs(b).max()) for b in rest), default=0.0)
    # A score is off by a rounding a term, exp by two units beside what the score does to it; shares
    # are sums of as many numbers as there are keys.
    score = EPS * ((depth + 2) * sums + 2 * size)
    bound = np.abs(v).max() * (2 * score + EPS * (2 * keys + 8))
    for isa in runtime.available_isas():
        found = []
        for threads in (1, 2, 7):
            with running(isa, threads):
                found.append(runtime.Program(graph, x.shape)(x))
        assert np.abs(found[0] - wanted).max() <= bound
        assert all(np.array_equal(found[0], other) for other in found[1:])
        with running(isa, 1):
            alone = runtime.Program(graph, x[1:].shape)(x[1:])
        np.testing.assert_array_equal(found[0][1:], alone)


def test_what_is_not_finite() -> None:
    """A score that a mask takes far down counts nothing, NaN spoils its query alone."""
    b = Builder(0, c=2, rank=3)
    parts = [b("constant", 0, w=b.weight("float", 2, 1, 1, 3, False, 0.0), rank=3) for _ in "kv"]
    masked = np.zeros((3, 1, 4, 1), np.float32)
    masked[1, 0, 2] = -3e38
    b.weights.append(Weight("mask", "float", masked))
    b("attention", 0, *parts, b("constant", 0, w=2, rank=3), tokens=3)
    graph = b.graph()
    x = np.random.default_rng(0).standard_normal((1, 4, 2)).astype(np.float32)
    x[0, 1, 0] = np.nan
    k, v, extra = (w.array[None, :, 0, :, 0] for w in graph.weights)
    wanted = reference.attention(x.swapaxes(1, 2), k, v, extra, heads=1, scale=1.0)
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            found = runtime.Program(graph, x.shape)(x)
        np.testing.assert_allclose(found, wanted.swapaxes(1, 2), rtol=1e-5, atol=1e-6)
        assert np.isnan(found).any(2)[0].tolist() == [False, True, False, False]


def test_scores_are_in_no_value() -> None:
    """784 tokens, four heads: 9.8 MB of scores, of which a few at a time are made."""
    graph = program((4, 16, 16, 784, 784), bias=False)
    made = runtime.Program(graph, (1, 784, 64))
    values = 4 * 784 * 64 * 4  # input, keys, values, output
    assert made.peak_bytes((1, 784, 64)) - values < 64 * 1024
    assert made.info()["macs"] == 2 * 784 * 784 * 64


@pytest.mark.parametrize(
    ("change", "named"),
    [({"heads": 5}, "divisible by 5"), ({"tokens": 6}, "divisible by 6"), ({"heads": 1}, "bias")],
)
def test_what_does_not_fit_is_named(change: dict[str, int], named: str) -> None:
    b = Builder(0, c=2, rank=3)
    cases.with_bias(b, **change)
    with pytest.raises(FormatError, match=named):
        b.graph()


def test_another_number_of_tokens_is_refused() -> None:
    b = Builder(0, c=6, rank=3)
    b("attention", 0, 0, 0, heads=3, tokens=5)
    made = runtime.Program(b.graph(), (1, 5, 6))
    with pytest.raises(UnsupportedShape, match="tokens"):
        made(np.ones((2, 6, 6), np.float32))

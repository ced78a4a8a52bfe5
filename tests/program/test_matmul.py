# SPDX-License-Identifier: Apache-2.0
"""Products of two values: any shape, the same bits on every number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from cases import matmul as cases
from engine_access import running
from programs import Builder

from ternary_ops import reference, runtime
from ternary_ops.errors import UnsupportedShape
from ternary_ops.program.graph import Graph

EPS = float(np.finfo(np.float32).eps)


def program(groups: int, width: int, tokens: int, transpose: bool) -> Graph:
    b = Builder(0, c=groups * (width if transpose else tokens), rank=3)
    w = b.weight("float", groups * width, 1, 1, tokens, bias=False, zeros=0.0)
    b(
        "matmul",
        0,
        b("constant", 0, w=w, rank=3),
        groups=groups,
        tokens=tokens,
        transpose=transpose,
        scale=0.75,
    )
    return b.graph()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("shape", [*cases.SHAPES, cases.BENCH[1]], ids=str)
def test_within_a_bound_and_of_the_same_bits(shape: tuple[int, int, int], transpose: bool) -> None:
    graph = program(*shape, transpose)
    at = graph.nodes[2].attrs
    x = np.random.default_rng(1).standard_normal((2, 37, graph.values[0].channels))
    x = x.astype(np.float32)
    w = np.tile(graph.weights[0].array[:, 0, :, 0], (2, 1, 1))
    left = x.swapaxes(1, 2)
    wanted, size = (
        reference.matmul(a, b, at["groups"], transpose, at["scale"]).swapaxes(1, 2)
        for a, b in ((left, w), (np.abs(left), np.abs(w)))
    )
    terms = left.shape[1] // at["groups"]
    for isa in runtime.available_isas():
        found = []
        for threads in (1, 2, 7):
            with running(isa, threads):
                found.append(runtime.Program(graph, x.shape)(x))
        # A product and a sum a term, the scale, each rounded once.
        assert (np.abs(found[0] - wanted) <= EPS / 2 * (terms + 2) * size).all()
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])


def test_another_number_of_tokens_is_refused() -> None:
    b = Builder(0, c=12, rank=3)
    b("matmul", 0, 0, groups=3, tokens=5, transpose=True)
    graph = b.graph()
    assert runtime.Program(graph, (1, 5, 12))(np.ones((2, 5, 12), np.float32)).shape == (2, 5, 15)
    with pytest.raises(UnsupportedShape, match="tokens"):
        runtime.Program(graph, (1, 5, 12))(np.ones((2, 6, 12), np.float32))

# SPDX-License-Identifier: Apache-2.0
"""The oracle of the engine equals a fake-quantized PyTorch network at every node, bit for bit: what
rounds floats of its own, LayerNorm and attention, to a code or two.
"""

from __future__ import annotations

import numpy as np
import pytest
from engine_access import by_torch
from programs import PROGRAMS, Builder, example

from ternary_ops.errors import UnsupportedShape
from ternary_ops.program.interpret import simulate
from ternary_ops.program.shapes import infer

_ROUNDED = {"layer_norm": 1, "attention": 2}  # codes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PROGRAMS)
def test_equal_to_pytorch_at_every_node(name: str, seed: int) -> None:
    graph = PROGRAMS[name](seed)
    x = example(graph, 2, 15 + seed, 18, seed)
    ours = simulate(graph, x)
    assert [v.shape for v in ours] == infer(graph, 2, 15 + seed, 18)
    for i, (node, a) in enumerate(zip(graph.nodes, ours, strict=True)):
        where = f"{name} node {i} {node.op}"
        assert a.dtype == (np.float32 if graph.values[i].y is None else np.uint8), where
        assert np.ptp(a) > 0, f"{where}: a constant proves nothing"
        if i == 0:
            continue
        b = by_torch(graph, node, ours)
        off = _ROUNDED.get(node.op, 0) if node.attrs.get("y") else 0
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0, atol=off, err_msg=where)


def test_one_changed_input_changes_every_integer_node() -> None:
    """A weak oracle would not notice; the pools and clamps of the program must let it through."""
    graph = PROGRAMS["image"]()
    x = example(graph, 1, 15, 18)
    moved = x.copy()
    moved[0, :, 6:9, 6:9] += 1.5
    for i, (a, b) in enumerate(zip(simulate(graph, x), simulate(graph, moved), strict=True)):
        assert not np.array_equal(a, b), i


def test_not_a_number_becomes_code_zero() -> None:
    b = Builder(0, c=2)
    b("dequantize", b("quantize", 0, y=(0.5, 7)))
    x = np.array([np.nan, np.inf, -np.inf, 0.25, 0.75, 1e38], np.float32).reshape(1, 2, 3, 1)
    q, out = simulate(b.graph(), x)[1:]
    assert q.ravel().tolist() == [0, 255, 0, 7, 9, 255]
    assert out.ravel().tolist() == [-3.5, 124.0, -3.5, 0.0, 1.0, 124.0]


def test_empty_batch_and_small_images() -> None:
    graph = PROGRAMS["image"]()
    assert simulate(graph, example(graph, 0, 15, 18))[-1].shape == (0, 10)
    with pytest.raises(UnsupportedShape, match="node"):
        simulate(PROGRAMS["mixed"](), example(PROGRAMS["mixed"](), 1, 1, 1))

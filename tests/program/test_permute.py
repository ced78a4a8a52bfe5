# SPDX-License-Identifier: Apache-2.0
"""permute: the same function bit for bit, never more occupied quads, fewer where there are any."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from programs import PROGRAMS, Builder, example, random_program
from small_networks import TorchvisionNet, ready

import ternary_ops as tops
from ternary_ops.errors import UnsupportedShape
from ternary_ops.program import column_grouping
from ternary_ops.program.graph import Graph
from ternary_ops.program.interpret import simulate
from ternary_ops.program.permute import permute
from ternary_ops.runtime import Program

RELU = (0.0, None)


def scattered(graph: Graph, seed: int, keep: float = 0.25) -> Graph:
    """The graph with zeros put element by element instead of quad by quad."""
    rng = np.random.default_rng(seed)
    weights = []
    for w in graph.weights:
        array = np.where(w.array == 0, 1, w.array) * (rng.random(w.shape) < keep)
        weights.append(replace(w, values=array.astype(w.array.dtype)))
    return replace(graph, weights=tuple(weights))


def sample_of(graph: Graph, n: int = 2, h: int = 41, w: int = 38) -> tuple[int, ...]:
    return example(graph, n, h, w).shape


def same_bits(graph: Graph, made: Graph) -> None:
    """Both programs, native, give the same output; made's inner nodes are those of the oracle."""
    shape = sample_of(graph)
    x = example(graph, shape[0], 41, 38)
    np.testing.assert_array_equal(Program(made, shape)(x), Program(graph, shape)(x))
    want = simulate(made, x)
    for got, value, node in zip(Program(made, shape).trace(x), want, made.values, strict=True):
        if node.y is not None:
            np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_keep_their_bits(seed: int) -> None:
    graph = scattered(random_program(seed), seed)
    try:
        made, report = permute(graph, sample_of(graph))
    except UnsupportedShape:
        pytest.skip("this program takes larger images")
    assert report.after <= report.before
    same_bits(graph, made)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_op_keeps_its_bits(name: str) -> None:
    graph = scattered(PROGRAMS[name](), 3)
    made, report = permute(graph, sample_of(graph))
    # In "wide" and "tokens" every value reaches a concat or a shuffle, whose channels stay where
    # they are; in "mixed" and those of one operator, floats.
    assert report.after < report.before or name not in ("image", "flat")
    same_bits(graph, made)


def residual_net(seed: int) -> Graph:
    """Two blocks on one tied value, a depthwise and a grouped layer, a flattened head."""
    b = Builder(seed, c=3)
    x = b("quantize", 0, y=b.params())
    x = b("conv2d", x, w=b.weight("int8", 24, 3, 3, 3), padding=(1, 1), clamp=RELU, y=b.params(0))
    for _ in range(2):
        y = b("conv2d", x, w=b.weight("ternary", 20, 24, 3, 3), padding=(1, 1), y=b.params(0))
        w = b.weight("ternary", 24, 20, 3, 3)
        x = b("conv2d", y, x, w=w, padding=(1, 1), clamp=RELU, y=b.params(0))
    d = b.weight("int8", 24, 1, 3, 3)
    x = b("conv2d", x, w=d, groups=24, padding=(1, 1), clamp=RELU, y=b.params(0))
    x = b("conv2d", x, w=b.weight("ternary", 16, 12), groups=2, y=b.params())
    x = b("conv2d", x, w=b.weight("ternary", 18, 16), y=b.params())
    x = b("adaptive_avg_pool2d", x, size=(1, 1), y=b.params())
    x = b("linear", b("flatten", x), w=b.weight("int8", 22, 18), clamp=RELU, y=b.params(0))
    b("linear", x, w=b.weight("ternary", 5, 22))
    return b.graph()


@pytest.mark.parametrize("seed", range(4))
def test_residual_networks(seed: int) -> None:
    graph = scattered(residual_net(seed), seed, keep=0.1)
    made, report = permute(graph, sample_of(graph))
    assert report.after < report.before
    same_bits(graph, made)
    again, second = permute(graph, sample_of(graph))
    assert all(
        np.array_equal(a.array, b.array) for a, b in zip(made.weights, again.weights, strict=True)
    )
    assert second == report
    rows = {row.name: row for row in report.rows}
    assert rows["w1"].after < rows["w1"].before  # reads the tied value
    assert rows["w0"].after == rows["w0"].before  # the image keeps its order
    for w, new in zip(graph.weights, made.weights, strict=True):
        assert round(new.density * rows[w.name].quads) == rows[w.name].after
        assert np.array_equal(np.sort(w.array, axis=None), np.sort(new.array, axis=None))


def test_scattered_columns_of_hidden_quads_are_found() -> None:
    """Quads that a shuffle hid come back, all of them, behind a residual add too."""
    graph = residual_net(7)
    rng = np.random.default_rng(7)
    order = rng.permutation(20)
    weights = list(graph.weights)
    index = 2  # made by w1, read by w2, tied to nothing
    empty = rng.random((24, 3, 3, 5)) < 0.9
    array = np.where(np.repeat(empty, 4, axis=3), 0, 1).astype(np.int8)
    weights[index] = replace(weights[index], values=array[..., order])
    hidden = replace(graph, weights=tuple(weights))
    _, report = permute(hidden, sample_of(graph))
    found = {row.name: row for row in report.rows}["w2"]
    assert found.after == (~empty).sum() < found.before


def test_a_filter_bank_used_twice_is_reordered_once() -> None:
    b = Builder(5, c=4)
    x = b("quantize", 0, y=b.params())
    x = b("conv2d", x, w=b.weight("ternary", 12, 4), y=b.params())
    w = b.weight("ternary", 12, 12, 3, 3)
    for _ in range(3):
        x = b("conv2d", x, w=w, padding=(1, 1), y=b.params())
    b("conv2d", x, w=b.weight("ternary", 3, 12))
    graph = scattered(b.graph(), 5)
    made, report = permute(graph, sample_of(graph))
    assert report.after < report.before
    same_bits(graph, made)


def test_values_tied_to_the_output_keep_their_order() -> None:
    b = Builder(6, c=4)
    x = b("quantize", 0, y=b.params())
    x = b("conv2d", x, w=b.weight("ternary", 16, 4), y=b.params())
    y = b("conv2d", x, w=b.weight("ternary", 16, 16, 3, 3), padding=(1, 1), y=b.params())
    b("dequantize", b("add", x, y, y=b.params()))
    graph = scattered(b.graph(), 6)
    made, report = permute(graph, sample_of(graph))
    assert report.after == report.before
    same_bits(graph, made)


def test_an_order_of_few_columns_is_the_best_there_is() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mask, weights = rng.random((30, 8)) < 0.2, rng.integers(1, 9, 30).astype(float)
        order = column_grouping.best_order(mask, weights, [0] * 8)
        least = min(
            column_grouping.cost(mask[:, [0, *rest]], weights) for rest in permutations(range(1, 8))
        )
        assert sorted(order) == list(range(8))
        assert column_grouping.cost(mask[:, order], weights) <= 1.02 * least


def test_labels_keep_columns_among_their_own() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 21)
    mask = rng.random((200, 21)) < 0.1
    order = column_grouping.best_order(mask, np.ones(200), list(labels))
    assert np.array_equal(labels[order], labels) and not np.array_equal(order, np.arange(21))
    assert column_grouping.cost(mask[:, order], np.ones(200)) < column_grouping.cost(
        mask, np.ones(200)
    )


def test_compile_permutes_on_request(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(2, 3, 33, 33)
    settings: dict[str, Any] = {"pattern": "element", "zeros": 0.8}
    model = ready(TorchvisionNet(), x, **settings)
    tops.prune.Pruner(model, total_steps=1).step()
    with caplog.at_level("INFO"):
        plain, moved = tops.compile(model, x), tops.compile(model, x, permute=True)
    np.testing.assert_array_equal(moved(x.numpy()), plain(x.numpy()))
    report = permute(plain.graph, plain.sample)[1]
    assert report.after < report.before and f"{report.before} -> {report.after}" in caplog.text
    text = str(report)
    assert "all, by pixels" in text and "blocks.0.conv2" in text


def test_a_sample_of_another_program_is_refused() -> None:
    graph = residual_net(0)
    with pytest.raises(UnsupportedShape, match="images"):
        permute(graph, (1, 3, 0, 5))

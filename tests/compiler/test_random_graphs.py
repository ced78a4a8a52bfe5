# SPDX-License-Identifier: Apache-2.0
"""Random networks, each run in a way of its own: call == trace == NumPy == PyTorch.

Some of what `python tests/run_graphs.py` runs by the thousand.
"""

from __future__ import annotations

import engine_access as access
import numpy as np
import pytest
from graph_checks import Case, Difference, Tally, check, draw, fails_with, run_seed, same, shrink
from programs import Builder, example
from random_graphs import FUNCTIONS
from topologies import TOPOLOGIES, network

PARTS, EACH = 12, 80
FIRST = 1_000_000  # seeds that no log has


@pytest.mark.parametrize("part", range(PARTS))
def test_every_way_to_run_a_network_gives_the_same(part: int) -> None:
    tally, first = Tally(), FIRST + part * EACH
    for seed in range(first, first + EACH):
        run_seed(seed, tally)
    assert tally.graphs >= 0.9 * EACH
    assert tally.weak <= 0.1 * EACH
    assert tally.median_nodes() >= 12
    assert tally.banded >= 0.3 * tally.graphs
    assert tally.often >= 0.15 * tally.graphs


@pytest.mark.parametrize("names", [("pan", "unet"), ("attention", "dense")])
def test_natural_sizes(names: tuple[str, ...]) -> None:
    tally = Tally()
    for seed in range(FIRST, FIRST + 12):
        run_seed(seed, tally, names, natural=True)
    assert tally.banded >= 2


def test_the_networks_drawn_have_every_operator_and_function() -> None:
    graphs = [network(seed) for seed in range(400)]
    graphs += [network(seed, names=("pixelwise",)) for seed in range(150)]  # has the functions
    nodes = [node for graph in graphs for node in graph.nodes]
    only_of_tokens = {"attention", "matmul"}  # the networks are of images
    assert {node.op for node in nodes} == set(access.operators()) - only_of_tokens
    assert {n.attrs["fn"] for n in nodes if n.op == "activation"} == set(FUNCTIONS)
    assert set(FUNCTIONS) == set(access.activations.FUNCTIONS)
    kinds = {w.kind for graph in graphs for w in graph.weights}
    assert kinds == {"float", "int8", "ternary"}
    assert any(value.fine for graph in graphs for value in graph.values)
    assert len(TOPOLOGIES) >= 14


def test_a_seed_gives_one_network_and_one_case() -> None:
    isas = access.available_isas()
    assert draw(5, isas) == draw(5, isas)
    assert network(5).nodes == network(5).nodes


def test_failures_are_shrunk_to_the_nodes_that_matter() -> None:
    """A check that fails wherever something is pooled leaves little but the pool."""

    def failing(graph: access.Graph, case: Case) -> bool:
        return any(node.op == "max_pool2d" for node in graph.nodes)

    seed = next(s for s in range(100) if failing(network(s), draw(s, ["scalar"])))
    graph, case = shrink(network(seed), draw(seed, ["scalar"]), failing)
    assert len(graph.nodes) <= 4
    assert (case.batch, case.threads, case.band) == (1, 1, 0)
    assert not fails_with(Difference)(graph, case)


def test_differences_are_noticed() -> None:
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    with pytest.raises(Difference, match="1 of 6, first at"):
        same("a value", x, np.where(x == 4, 5, x).astype(np.float32))
    with pytest.raises(Difference):
        same("a value", x, np.where(x == 4, np.nan, x).astype(np.float32))


@pytest.mark.parametrize("isa", access.available_isas())
def test_gates_of_floats_have_the_same_bits_everywhere(isa: str) -> None:
    """The scalar kernels rounded products and sums of the sigmoid one by one, others together."""
    b = Builder(4, c=8)
    x = b("quantize", 0, y=b.params())
    b("conv2d", x, x, w=b.weight("int8", 8, 8, 3, 3), padding=(1, 1), gate=True)
    graph = b.graph()
    program = access.Program(graph, (1, 8, 64, 64))
    images = example(graph, 2, 64, 64)
    with access.running(isa, 1):
        values = program.trace(images)
    same(isa, values[-1], access.by_numpy(graph, graph.nodes[-1], values))


def test_case_without_a_size_is_told() -> None:
    tally = Tally()
    b = Builder(0, c=3)
    b("max_pool2d", 0, kernel=(4000, 1))
    check(b.graph(), draw(0, ["scalar"], natural=False), tally)
    assert (tally.refused, tally.graphs) == (1, 0)

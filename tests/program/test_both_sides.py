# SPDX-License-Identifier: Apache-2.0
"""Rules stand once in Python and once in the native core: both take and refuse the same nodes, and
make the same shapes.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
from programs import PROGRAMS, example, random_program

from ternary_ops import _native
from ternary_ops.errors import FormatError, TernaryOpsError, UnsupportedShape
from ternary_ops.program.graph import Graph, Node, bound, checked
from ternary_ops.program.native import build
from ternary_ops.program.operator import to_outside
from ternary_ops.program.shapes import infer_from, macs

Change = tuple[tuple[int, ...], dict[str, Any]]
_ODD: tuple[Any, ...] = (0, -1, 1, 2, 3, 5, True, 0.5, "x", (0, 1), (1, 1), (3, 2), (2, -1), (1,))


def changed(rng: np.random.Generator, graph: Graph, i: int) -> Change:
    """Inputs and attributes of node i with one of them changed."""
    node = graph.nodes[i]
    inputs, attrs = list(node.inputs), copy.deepcopy(node.attrs)
    names = [name for name in attrs if name != "w"]
    how = rng.integers(4)
    if how == 0 and names:
        attrs[str(rng.choice(names))] = _ODD[rng.integers(len(_ODD))]
    elif how == 1:
        inputs[rng.integers(len(inputs))] = int(rng.integers(i))
    elif how == 2:
        inputs = inputs[:-1] if rng.random() < 0.5 else [*inputs, int(rng.integers(i))]
    elif names:
        del attrs[str(rng.choice(names))]
    return tuple(inputs), attrs


def by_rules(graph: Graph, i: int, change: Change) -> Node | None:
    """The changed node, None where the rules in Python refuse it."""
    try:
        node = Node(graph.nodes[i].op, *change)
        node.operator.value(checked(node, graph.weights, graph.values[:i]))
    except FormatError:
        return None
    return node


def told(graph: Graph, i: int, change: Change) -> dict[str, Any]:
    """What the engine is told of a changed node, be it valid or not."""
    node = graph.nodes[i]
    inputs, attrs = change
    changed_node = copy.copy(node)
    object.__setattr__(changed_node, "inputs", inputs)
    object.__setattr__(changed_node, "attrs", attrs)
    try:
        extra = node.operator.native(bound(changed_node, graph.weights, graph.values))
    except (IndexError, KeyError, TypeError, ValueError):
        extra = node.operator.native(graph.bound(node))
    given = {**attrs, **extra}
    given.pop("w", None)
    return given


def engine_before(graph: Graph, i: int) -> Any:
    """An engine that has the nodes before node i."""
    engine = _native.core().Engine()
    for node in graph.nodes[:i]:
        given = {**node.attrs, **node.operator.native(graph.bound(node))}
        given.pop("w", None)
        engine.add(node.op, list(node.inputs), given)
    return engine


def by_engine(engine: Any, op: str, inputs: tuple[int, ...], given: dict[str, Any]) -> bool:
    try:
        engine.add(op, list(inputs), given)
    except TernaryOpsError:
        return False
    return True


# Where the core is told less, or takes more than a program may say: the words of our refusal.
_OURS_ALONE = (
    "values of one kind for",  # and add codes to floats
    "beside sums of floats",
    "without bounds",  # slopes first, then they
    "eleven bits",  # codes like others to the core
    "input channels, got",  # of a flattened image, which the core compares when it knows the size
    "n, 1, 1, 1]",
)


@pytest.mark.parametrize("seed", range(12))
def test_both_take_and_refuse_the_same_nodes(seed: int) -> None:
    rng, outcomes = np.random.default_rng(seed), Counter[tuple[bool, bool]]()
    for _ in range(25):
        graph = some_graph(rng)
        i = int(rng.integers(1, len(graph.nodes)))
        change = changed(rng, graph, i)
        node = by_rules(graph, i, change)
        full = change if node is None else (node.inputs, node.attrs)
        engine, op = engine_before(graph, i), graph.nodes[i].op
        theirs = by_engine(engine, op, full[0], told(graph, i, full))
        where = f"{op} {full} of {[graph.values[j] for j in full[0]]}"
        if node is None and theirs:
            assert any(words in refusal(graph, i, change) for words in _OURS_ALONE), where
            continue
        assert theirs == (node is not None), where
        outcomes[node is not None, theirs] += 1
        if node is not None:
            sizes = int(rng.integers(3, 20)), int(rng.integers(3, 20))
            same_shape(graph, i, node, engine, example(graph, 1, *sizes))
    assert min(outcomes[True, True], outcomes[False, False]) >= 5


def some_graph(rng: np.random.Generator) -> Graph:
    seed, programs = int(rng.integers(2**31)), list(PROGRAMS.values())
    choice = int(rng.integers(len(programs) + 6))
    return programs[choice](seed) if choice < len(programs) else random_program(seed)


def refusal(graph: Graph, i: int, change: Change) -> str:
    try:
        node = Node(graph.nodes[i].op, *change)
        node.operator.value(checked(node, graph.weights, graph.values[:i]))
    except FormatError as error:
        return str(error)
    return ""


def same_shape(graph: Graph, i: int, node: Node, engine: Any, x: Any) -> None:
    """Node i, the engine's last, is of one shape on both sides, or both refuse the size of x."""
    value = node.operator.value(checked(node, graph.weights, graph.values[:i]))
    try:
        known = [to_outside(shape) for shape in infer_from(graph, x.shape)]
    except UnsupportedShape:
        return
    if value.fine:
        return
    engine.output(i if value.y is None else engine.add("dequantize", [i], {}))
    read = bound(node, graph.weights, graph.values)
    try:
        ours = to_outside(node.operator.shape(read, [known[j] for j in node.inputs]))
    except UnsupportedShape:
        with pytest.raises(UnsupportedShape):
            engine.run(x)
        return
    assert engine.run(x).shape == ours


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_count_the_same_multiply_adds(name: str) -> None:
    graph = PROGRAMS[name](2)
    x = example(graph, 2, 17, 20)
    found = [int(row["macs"]) for row in build(graph).profile(x, 1)]
    counts = macs(graph, infer_from(graph, x.shape))
    fine = [any(graph.values[j].fine for j in node.inputs) for node in graph.nodes]
    assert found == [n * (1 + twice) for n, twice in zip(counts, fine, strict=True)]  # two codes
    assert sum(found) > 0

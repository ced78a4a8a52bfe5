# SPDX-License-Identifier: Apache-2.0
"""A program that is malformed in any detail is refused before anything runs."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from cases import program_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PROGRAMS, Builder, example, image_program, mixed_program

from ternary_ops.errors import FormatError, UnsupportedShape
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.interpret import simulate
from ternary_ops.program.ops import OPS
from ternary_ops.program.serialize import from_index, to_arrays, to_index
from ternary_ops.program.shapes import infer, macs
from ternary_ops.program.weight import Weight


@pytest.mark.parametrize("name", PROGRAMS)
def test_index_round_trip(name: str) -> None:
    graph = PROGRAMS[name]()
    index = json.loads(json.dumps(to_index(graph)))
    again = from_index(index, to_arrays(graph))
    assert again.nodes == graph.nodes
    assert again.values == graph.values
    for a, b in zip(graph.weights, again.weights, strict=True):
        assert (a.name, a.kind) == (b.name, b.kind)
        for left, right in ((a.array, b.array), (a.scale, b.scale), (a.bias, b.bias)):
            assert (left is None) == (right is None)
            assert left is None or np.array_equal(left, right)


def test_index_leaves_defaults_out() -> None:
    b = Builder(0, c=4)
    x = b("quantize", 0, y=(0.1, 3))
    x = b("max_pool2d", x, kernel=(2, 2))
    b("conv2d", x, w=b.weight("ternary", 4, 4))
    assert to_index(b.graph())["nodes"] == [
        ["input", {"c": 4}],
        ["quantize", {"y": [0.1, 3]}],
        ["max_pool2d", {"kernel": [2, 2]}],
        ["conv2d", {"w": 0}],
    ]


def test_every_op_is_in_the_test_programs() -> None:
    used = {node.op for make in PROGRAMS.values() for node in make().nodes}
    assert used == set(OPS)


# One wrong value per attribute check, for whichever attributes a node has.
_WRONG: dict[str, list[Any]] = {
    "c": [0, -1, 2**25, 1.0, True, "3", None, [3]],
    "rank": [1, 5, 0, True, "4", 4.0],
    "w": [-1, 99, 2**40, 0.0, True, None],
    "stride": [[0, 1], [1], [1, 1, 1], 1, [1.0, 1], [5000, 1], [True, 1], "11", {}],
    "padding": [[-1, 0], [0, 5000], [0], 0, [None, 0]],
    "dilation": [[0, 1], [1, 5000], [1]],
    "more_padding": [[-1, 0], [0, 5000], [0], 0, [None, 0]],
    "kernel": [[0, 1], [1, 5000], None, 2],
    "size": [[0, 1], [1, 5000], None, [1, None]],
    "groups": [0, -2, 5, 2**30, True, 1.0],
    "clamp": [[1, 0], [float("nan"), None], [None, float("inf")], [0], ["0", None], [1e39, None]],
    "y": [[0, 0], [-1.0, 0], [0.1, 256], [0.1, -1], [0.1, 1.0], [0.1], [float("nan"), 0], 0.1,
          [1e-39, 0], [1e38, 0], [True, 0], [10**400, 0]],
    "gate": [0, 1, None, "true"],
    "fine": [0, 1, None, "true"],
    "ceil": [0, 1, None, "true"],
    "include_pad": [0, "no"],
    "divisor": [0, -1, 1.5, True, 2**31],
    "fn": ["cosh", None, 3, ["silu"], ""],
    "params": [[0.1] * 3, None, 0.1, ["a"], [float("nan")], [True], [1e40], [0.1] * 9],
    "begin": [-1, 13, 2**30, None, True, 0.5],
    "end": [0, 5, 17, None, 1.0],
    "axis": [0, 4, -1, True, 1.0, "1", None],
    "factor": [[0, 1], [3, 5], [1, 5000], 2, None],
    "crop": [[-1, 0], [0, 5000], None, 1],
    "mode": ["lanczos", None, 0, True],
    "align": [0, None, "yes"],
    "zoom": [[0, 1], [1.0], 2, [-1, 1], [float("inf"), 1], ["1", 1], [1e30, 1]],
    "tokens": [0, 8, 2**30, None, True, 9.0],
    "transpose": [0, 1, None, "true"],
    "scale": [None, "1", float("nan"), True, 1e39, [1.0]],
    "eps": [0, -1e-5, float("nan"), None, "1e-5", True],
    "heads": [0, -1, 4, 2**31, 2.0, True, None, "2"],
}  # fmt: skip


# Of one operator: "operator.attribute".
for _case in program_cases().values():
    _WRONG |= {f"{_case.op}.{name}": values for name, values in _case.wrong.items()}
# Without a bias only the sizes of the operands tell that 8 is wrong: test_token_attention.
_WRONG["attention.tokens"] = [0, 2**30, None, True, 9.0]
_WRONG["attention.repeats"] = [[0], [2], [1, 1], None, "1", [True], [1.0], 2]
_WRONG["input.size"] = [[0, 1], [1, 2**25], [1, 1, 1], 0, "1", [1.0, 1], [], True]
_NAMES = sorted({key.rpartition(".")[2] for key in _WRONG})


def _indexes() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    graphs = {name: make() for name, make in PROGRAMS.items()}
    return [(name, to_index(g), to_arrays(g)) for name, g in graphs.items()]


def test_every_attribute_mutation_is_refused() -> None:
    tried = set()
    for name, index, arrays in _indexes():
        for i, entry in enumerate(index["nodes"]):
            for attribute in OPS[entry[0]].attrs:
                own = f"{entry[0]}.{attribute}"
                key = own if own in _WRONG else attribute
                for wrong in _WRONG[key]:
                    if wrong is OPS[entry[0]].attrs[attribute].default:
                        continue  # saying nothing
                    bad = copy.deepcopy(index)
                    if type(bad["nodes"][i][-1]) is not dict:
                        bad["nodes"][i].append({})
                    bad["nodes"][i][-1][attribute] = wrong
                    with pytest.raises(FormatError):
                        from_index(bad, arrays)
                        pytest.fail(f"{name} node {i} {entry[0]}.{attribute} = {wrong!r}")
                    tried.add(key)
    assert tried == set(_WRONG)


def _bad_indexes(index: dict[str, Any]) -> list[Any]:
    nodes, weights = index["nodes"], index["weights"]
    return [
        None,
        [],
        {},
        {"nodes": nodes},
        {**index, "more": 1},
        {"nodes": {}, "weights": weights},
        {"nodes": nodes, "weights": {}},
        {"nodes": [], "weights": []},
        {"nodes": nodes[:1], "weights": []},
        {"nodes": nodes[:-1], "weights": weights},  # ends in uint8, a weight is unused
        {"nodes": nodes[1:], "weights": weights},  # no input
        {"nodes": [nodes[0], *nodes], "weights": weights},  # two inputs
        {"nodes": nodes, "weights": weights[:-1]},
        {"nodes": nodes, "weights": [*weights, weights[0]]},
        {"nodes": [nodes[0], ["quantize", [0], {"y": [0.1, 0]}], *nodes[1:]], "weights": weights},
        *({"nodes": [*nodes[:2], bad, *nodes[3:]], "weights": weights} for bad in _BAD_NODES),
        *({"nodes": nodes, "weights": [bad, *weights[1:]]} for bad in _BAD_WEIGHTS),
    ]


_BAD_NODES: list[Any] = [
    None, [], {}, "conv2d", [None], ["conv2d"], ["conv3d", {}], ["conv2d", {"w": 0}, [0]],
    ["conv2d", [1], {"w": 0}, {}], ["conv2d", [2], {"w": 0}], ["conv2d", [-1], {"w": 0}],
    ["conv2d", [0.5], {"w": 0}], ["conv2d", [], {"w": 0}], ["conv2d", [1, 1, 1], {"w": 0}],
    ["conv2d", [1], {"w": 0, "bogus": 1}], ["flatten", {"y": [1, 0]}], ["dequantize", [0]],
    ["quantize", [1], {"y": [1, 0]}], ["input", {"c": 3}], [["conv2d"]],
]  # fmt: skip
_BAD_WEIGHTS: list[Any] = [
    None, [], ["a"], ["a", "ternary"], ["a", "binary", 0], [1, "ternary", 1], ["a", "ternary", 2],
    ["a", "ternary", True], ["a" * 2000, "ternary", 1], ["a", ["ternary"], 1], ["a", "float", 1],
    ["a", "ternary", 1, 1],
]  # fmt: skip


def test_malformed_indexes_are_refused() -> None:
    graph = image_program()
    arrays = to_arrays(graph)
    for bad in _bad_indexes(to_index(graph)):
        with pytest.raises(FormatError):
            from_index(bad, arrays)
            pytest.fail(repr(bad)[:200])


def test_missing_and_stray_arrays_are_refused() -> None:
    graph = image_program()
    index, arrays = to_index(graph), to_arrays(graph)
    for key in arrays:
        with pytest.raises(FormatError):
            from_index(index, {k: v for k, v in arrays.items() if k != key})
    with pytest.raises(FormatError, match="arrays of weights"):
        from_index(index, {**arrays, "99.w": arrays["0.w"]})


def _bad_weights() -> list[dict[str, Any]]:
    codes = np.ones((4, 1, 1, 8), np.int8)
    scale = np.ones(4, np.float32)
    good: dict[str, Any] = {"name": "a", "kind": "ternary", "values": codes, "scale": scale}
    nan = np.array([1, np.nan, 1, 1], np.float32)
    changes: list[dict[str, Any]] = [
        {"values": codes * 2},
        {"values": codes.astype(np.int16)},
        {"values": codes[0]},
        {"values": codes[:0]},
        {"values": codes.tolist()},
        {"kind": "int8", "values": np.full((4, 1, 1, 8), -128, np.int8)},
        {
            "kind": "int8",
            "values": np.full((4, 1, 1, 70_000), 127, np.int8),
        },  # int32 would overflow
        {"kind": "float", "values": np.ones((4, 1, 1, 8), np.float32)},  # with a scale
        {"kind": "float", "scale": None, "values": np.full((4, 1, 1, 8), np.inf, np.float32)},
        {"scale": None},
        {"scale": scale[:3]},
        {"scale": scale.astype(np.float64)},
        {"scale": nan},
        {"bias": nan},
        {"bias": np.ones(5, np.float32)},
        {"name": 3},
        {"kind": None},
    ]
    Weight(**good)
    return [{**good, **change} for change in changes]


@pytest.mark.parametrize("fields", _bad_weights())
def test_bad_weights_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Weight(**fields)


def test_arithmetic_of_channels_and_kinds() -> None:
    def build(*nodes: tuple[Any, ...], c: int = 8, rank: int = 4) -> None:
        b = Builder(0, c=c, rank=rank)
        for kind, o, i in (("ternary", 4, 8), ("float", 4, 8), ("ternary", 4, 4)):
            b.weight(kind, o, i)
        for op, inputs, attrs in nodes:
            b(op, *inputs, **attrs)
        b.graph()

    y = (0.1, 0)
    wrong: dict[str, list[tuple[Any, ...]]] = {
        "8 input channels": [("conv2d", (0,), {"w": 0}), ("conv2d", (1,), {"w": 0})],
        "uint8 input for": [("conv2d", (0,), {"w": 0, "y": y})],
        "float weights": [("quantize", (0,), {"y": y}), ("conv2d", (1,), {"w": 1})],
        "split into 3": [("conv2d", (0,), {"w": 0, "groups": 3})],
        "residual": [("conv2d", (0, 0), {"w": 0})],
        "one kind": [("quantize", (0,), {"y": y}), ("add", (0, 1), {})],
        "8 channels": [("conv2d", (0,), {"w": 0}), ("add", (0, 1), {})],
        "rank 2": [("linear", (0,), {"w": 0})],
        "rank 4": [("flatten", (0,), {}), ("conv2d", (1,), {"w": 0})],
        "at most half": [
            ("max_pool2d", (0,), {"kernel": (3, 2), "dilation": (2, 2), "padding": (2, 0)})
        ],
        "half of 2": [("avg_pool2d", (0,), {"kernel": (2, 2), "padding": (0, 2)})],
        "floats for quantize": [("quantize", (0,), {"y": y}), ("quantize", (1,), {"y": y})],
        "uint8 for dequantize": [("dequantize", (0,), {})],
        "that makes floats": [("quantize", (0,), {"y": y})],
        "use of every value": [("conv2d", (0,), {"w": 0}), ("conv2d", (0,), {"w": 0})],
        "use of every weight": [("conv2d", (0,), {"w": 0}), ("clamp", (1,), {"clamp": (0, 1)})],
    }
    for message, nodes in wrong.items():
        with pytest.raises(FormatError, match=message):
            build(*nodes)
    with pytest.raises(FormatError, match="12"):
        # a flattened image of 8 channels never has 12 values
        b = Builder(0, c=8)
        b("linear", b("flatten", 0), w=b.weight("ternary", 3, 12))
        b.graph()


def test_overflowing_scales_are_refused() -> None:
    w = Weight("a", "ternary", np.ones((1, 1, 1, 1), np.int8), np.array([3e38], np.float32))
    nodes = (Node("input", (), {"c": 1}), Node("quantize", (0,), {"y": (2.0, 0)}))
    with pytest.raises(FormatError, match="finite"):
        Graph((*nodes, Node("conv2d", (1,), {"w": 0})), (w,))


_LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(sorted(OPS))
)
_JSON = st.recursive(
    _LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3)
    ),
    max_leaves=6,
)


def _replace(value: Any, path: int, new: Any) -> Any:
    """Replace the path-th leaf or container of a JSON value, counted depth first."""
    counter = iter(range(10**9))

    def walk(v: Any) -> Any:
        if next(counter) == path:
            return new
        if isinstance(v, list):
            return [walk(e) for e in v]
        if isinstance(v, dict):
            return {k: walk(e) for k, e in v.items()}
        return v

    return walk(value)


_FUZZED = {name: (to_index(make()), to_arrays(make())) for name, make in PROGRAMS.items()}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(PROGRAMS)), st.integers(0, 220), _JSON)
def test_fuzzed_index_is_a_graph_or_a_format_error(name: str, path: int, new: Any) -> None:
    index, arrays = _FUZZED[name]
    try:
        graph = from_index(_replace(index, path, new), arrays)
    except FormatError:
        return
    assert from_index(to_index(graph), to_arrays(graph)).nodes == graph.nodes
    try:
        shapes = infer(graph, 1, 9, 9)
    except UnsupportedShape:
        return
    if max(int(np.prod(s)) for s in shapes) < 10**6 and sum(macs(graph, shapes)) < 10**8:
        values = simulate(graph, example(graph, 1, 9, 9))
        assert [v.shape for v in values] == shapes


def test_infer_names_the_node_that_does_not_fit() -> None:
    b = Builder(0, c=2)
    x = b("conv2d", 0, w=b.weight("float", 2, 2, 3, 3))
    b("max_pool2d", x, kernel=(4, 4))
    graph = b.graph()
    assert infer(graph, 2, 6, 9)[-1] == (2, 2, 1, 1)
    with pytest.raises(UnsupportedShape, match=r"node 1 \(conv2d\)"):
        infer(graph, 1, 2, 9)
    with pytest.raises(UnsupportedShape, match=r"node 2 \(max_pool2d\)"):
        infer(graph, 1, 5, 9)
    with pytest.raises(UnsupportedShape, match="Split the batch"):
        infer(graph, 2**20, 100, 100)
    for sizes in ((-1, 6, 6), (1, 0, 6), (1, 6, 0)):
        with pytest.raises(UnsupportedShape):
            infer(graph, *sizes)


def test_flattened_image_must_match_the_linear_layer() -> None:
    b = Builder(0, c=4)
    b("linear", b("flatten", 0), w=b.weight("float", 3, 4 * 6))
    assert infer(b.graph(), 5, 2, 3)[-1] == (5, 3)
    with pytest.raises(UnsupportedShape, match="24"):
        infer(b.graph(), 5, 3, 3)


def test_macs_count_the_dense_network() -> None:
    graph = mixed_program()
    shapes = infer(graph, 2, 8, 8)
    assert macs(graph, shapes)[1] == 2 * 12 * 8 * 8 * 5 * 9
    assert macs(graph, shapes)[-1] == 2 * 7 * 9
    assert sum(c > 0 for c in macs(graph, shapes)) == sum(
        node.op in ("conv2d", "linear") for node in graph.nodes
    )


def test_density_counts_occupied_quads() -> None:
    array = np.zeros((2, 1, 1, 6), np.int8)
    array[0, 0, 0, 5] = 1
    array[1, 0, 0, 0] = -1
    array[1, 0, 0, 1] = 1
    assert Weight("a", "ternary", array, np.ones(2, np.float32)).density == 0.5


def test_weights_cannot_change_under_a_program() -> None:
    values = np.ones((1, 1, 1, 1), np.float32)
    weight = Weight("a", "float", values)
    with pytest.raises(ValueError, match="read-only"):
        weight.array[0] = 2
    assert values.flags.writeable

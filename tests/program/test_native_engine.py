# SPDX-License-Identifier: Apache-2.0
"""The native engine through its own entry: operators by name, attributes by name, named errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ternary_ops import runtime
from ternary_ops._native import core
from ternary_ops.errors import UnsupportedModel, UnsupportedShape

EPS = float(np.finfo(np.float32).eps)
Array = NDArray[Any]


@pytest.fixture(autouse=True)
def restore_core() -> Iterator[None]:
    yield
    core().set_num_threads(0)


def one_op(op: str, c: int, attrs: dict[str, Any], rank: int = 4) -> Any:
    """A program of floats with one operator."""
    engine = core().Engine()
    x = engine.add("input", [], {"c": c, "rank": rank})
    engine.output(engine.add(op, [x], attrs))
    return engine


def group_norm(x: Array, groups: int, weight: Array, bias: Array, eps: float) -> Array:
    n, c = x.shape[:2]
    grouped = x.astype(np.float64).reshape(n, groups, -1)
    mean = grouped.mean(axis=2, keepdims=True)
    spread = np.sqrt(grouped.var(axis=2, keepdims=True) + np.float64(np.float32(eps)))
    exact = ((grouped - mean) / spread).reshape(n, c, -1)
    return (exact * weight[:, None] + bias[:, None]).reshape(x.shape)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 12, 7, 9), 3), ((1, 6, 1, 1), 2), ((3, 5, 33, 40), 5), ((2, 4, 8, 3), 1)],
)
def test_group_norm(shape: tuple[int, ...], groups: int, threads: int) -> None:
    core().set_num_threads(threads)
    rng = np.random.default_rng(sum(shape))
    c = shape[1]
    x = (rng.standard_normal(shape) * 3 + 100).astype(np.float32)
    weight, bias = rng.standard_normal((2, c)).astype(np.float32)
    attrs = {"groups": groups, "eps": 1e-5, "weight": weight, "bias": bias}
    got = one_op("group_norm", c, attrs).run(x)
    want = group_norm(x, groups, weight, bias, 1e-5)
    # The normalized value, the product and the sum are rounded once each.
    size = np.abs(want - bias[:, None, None]) + np.abs(want)
    assert (np.abs(got - want) <= 1.5 * EPS * size + 1e-9).all()


def test_group_norm_between_convolutions_and_in_place_of_its_input() -> None:
    """Padding of neighbors stays zero, the input that only it reads may be overwritten, and an
    image that would otherwise go a few rows at a time stays whole.
    """
    rng = np.random.default_rng(5)
    engine = core().Engine()
    v = engine.add("input", [], {"c": 8, "rank": 4})
    filters = rng.standard_normal((2, 8, 3, 3, 8)).astype(np.float32) / 8
    weight, bias = rng.standard_normal((2, 8)).astype(np.float32)
    conv = {
        "kind": "float",
        "shape": (8, 3, 3, 8),
        "scale": np.ones(8, np.float32),
        "stride": (1, 1),
        "padding": (1, 1),
        "more_padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "gate": False,
    }
    v = engine.add("conv2d", [v], {**conv, "weights": filters[0]})
    v = engine.add("group_norm", [v], {"groups": 2, "eps": 1e-3, "weight": weight, "bias": bias})
    engine.output(engine.add("conv2d", [v], {**conv, "weights": filters[1]}))
    engine.debug(poison=True)
    x = rng.standard_normal((1, 8, 300, 200)).astype(np.float32)
    assert engine.band(300, 200) == 0
    y, values = engine.run(x), engine.run_all(x)
    np.testing.assert_array_equal(y, values[-1])
    want = group_norm(values[1], 2, weight, bias, 1e-3)
    np.testing.assert_allclose(values[2], want, rtol=1e-6, atol=1e-5)


def test_hardsigmoid_of_any_slope() -> None:
    x = np.random.default_rng(2).standard_normal((2, 5, 7, 9)).astype(np.float32) * 4
    attrs = {"fn": "affine_hardsigmoid", "params": (0.2, 0.5)}
    got = one_op("activation", 5, attrs).run(x)
    want = np.clip(np.float64(np.float32(0.2)) * x.astype(np.float64) + 0.5, 0, 1)
    assert (np.abs(got - want) <= EPS * (np.abs(x) + 1)).all()
    assert 0.05 < (got == 0).mean() < 0.45
    assert 0.05 < (got == 1).mean() < 0.45


def test_free_length_of_tokens() -> None:
    """One program, any number of tokens: each token alone gives its row of the whole."""
    rng = np.random.default_rng(3)
    engine = core().Engine()
    v = engine.add("input", [], {"c": 10, "rank": 3})
    v = engine.add("quantize", [v], {"y": (0.03, 120), "fine": False})
    attrs = {
        "kind": "int8",
        "shape": (7, 1, 1, 10),
        "weights": np.pad(rng.integers(-127, 128, (7, 10)), ((0, 0), (0, 2))).astype(np.int8),
        "scale": np.full(7, 1e-3, np.float32),
        "bias": rng.standard_normal(7).astype(np.float32),
    }
    v = engine.add("linear", [v], {**attrs, "y": (0.02, 100)})
    v = engine.add("dequantize", [v], {})
    affine = {"weight": np.ones(7, np.float32), "bias": np.zeros(7, np.float32)}
    engine.output(engine.add("layer_norm", [v], {"eps": 1e-5, **affine}))
    x = rng.standard_normal((2, 301, 10)).astype(np.float32)
    whole = engine.run(x)
    assert whole.shape == (2, 301, 7)
    assert len(np.unique(whole)) > 100
    for n, token in ((0, 0), (1, 37), (1, 300)):
        alone = engine.run(np.ascontiguousarray(x[n : n + 1, token : token + 1]))
        np.testing.assert_array_equal(alone[0, 0], whole[n, token])
    some = engine.run(np.ascontiguousarray(x[:, 5:22]))
    np.testing.assert_array_equal(some, whole[:, 5:22])


_FLAT = {"split": ((-1,), (-1,)), "order": (1, 0), "axes": (2,), "rank": 2}


@pytest.mark.parametrize("isa", runtime.available_isas())
def test_tokens_are_flattened_in_the_order_of_the_array(isa: str) -> None:
    x = np.random.default_rng(4).standard_normal((3, 5, 6)).astype(np.float32)
    with runtime.force_isa(isa):
        np.testing.assert_array_equal(one_op("rearrange", 6, _FLAT, 3).run(x), x.reshape(3, 30))
    engine = core().Engine()
    v = engine.add("input", [], {"c": 6, "rank": 3})
    v = engine.add("quantize", [v], {"y": (0.02, 128), "fine": False})
    engine.output(engine.add("dequantize", [engine.add("rearrange", [v], _FLAT)], {}))
    codes, flat = engine.run_all(x)[1:3]
    np.testing.assert_array_equal(flat, codes.reshape(3, 30))


NORM = {"groups": 2, "eps": 1e-5, "weight": np.ones(4, np.float32), "bias": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("group_norms", NORM, "one of the operators .*group_norm.*, got 'group_norms'"),
        ("group_norm", {**NORM, "groups": 3}, "4 channels, 3 groups"),
        (
            "group_norm",
            {**NORM, "groups": "2"},
            "attribute 'groups' to be an integer for group_norm, got '2'",
        ),
        ("group_norm", {**NORM, "groups": 2**70}, "'groups'.*64 bits"),
        (
            "group_norm",
            {**NORM, "axis": 1},
            "attributes that it has for group_norm, got 'axis' = 1",
        ),
        ("group_norm", {k: v for k, v in NORM.items() if k != "eps"}, "'eps'.*got nothing"),
        (
            "group_norm",
            {**NORM, "weight": np.ones(4)},
            "type 'f' for group_norm, got an array of 4 .* 'd'",
        ),
        ("slice", {"begin": 1, "end": 9}, "at least 9 channels"),
        ("clamp", {"clamp": (2.0, 1.0)}, "lo <= hi"),
        ("max_pool2d", {"ceil": False, "kernel": (2, None)}, "'kernel' to be integers .* got None"),
        ("resize", {"mode": "cubic", "align": False, "zoom": (2, 2)}, "mode .* got 'cubic'"),
        ("add", {}, "expected 2 inputs for add, got 1"),
    ],
)
def test_what_does_not_suit_an_operator_is_named(
    op: str, attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises((UnsupportedModel, UnsupportedShape), match=message):
        one_op(op, 4, attrs)


def test_sizes_that_do_not_fit_name_the_node() -> None:
    engine = one_op("pixel_unshuffle", 3, {"factor": (2, 2)})
    with pytest.raises(UnsupportedShape, match=r"node 1 \(pixel_unshuffle\): expected .* got 5x4"):
        engine.run(np.ones((1, 3, 5, 4), np.float32))

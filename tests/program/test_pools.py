# SPDX-License-Identifier: Apache-2.0
"""The native pools, inside a program, against the reference: every case, every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import EPS, PoolShape, pools

from ternary_ops import reference
from ternary_ops._native import core

ISAS = core().available_isas()
X = (0.05, 93)
Y = (0.04, 101)
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def restore_core() -> Iterator[None]:
    yield
    core().set_isa("")
    core().set_num_threads(0)


def results(
    x: Array, quantized: bool, op: str, attrs: dict[str, Any]
) -> Iterator[tuple[str, Array, Array]]:
    """Per instruction set and thread count: a label, the pool's input and its output."""
    for isa in ISAS:
        core().set_isa(isa)
        for threads in (1, 3):
            core().set_num_threads(threads)
            engine = core().Engine()
            value = engine.add("input", [], {"c": x.shape[1], "rank": 4})
            if quantized:
                value = engine.add("quantize", [value], {"y": X, "fine": False})
            pool = engine.add(op, [value], attrs)
            engine.output(engine.add("dequantize", [pool], {}) if quantized else pool)
            values = engine.run_all(x)
            yield f"{isa}, {threads} threads", values[value], values[pool]


def image(n: int, c: int, h: int, w: int) -> Array:
    return np.random.standard_normal((n, c, h, w)).astype(np.float32) * 3


@pytest.mark.parametrize("shape", pools.MAX.shapes, ids=str)
@pytest.mark.parametrize("quantized", [True, False], ids=["u8", "f32"])
def test_max_pool(shape: PoolShape, quantized: bool) -> None:
    dilation, ceil = shape.options.get("dilation", (1, 1)), shape.options.get("ceil", False)
    geometry = (shape.kernel, shape.stride, shape.padding, dilation, ceil)
    names = ("kernel", "stride", "padding", "dilation", "ceil")
    attrs = dict(zip(names, geometry, strict=True))
    x = image(shape.n, shape.c, *shape.size)
    for machine, q, y in results(x, quantized, "max_pool2d", attrs):
        assert np.array_equal(y, reference.max_pool2d(q, *geometry)), machine


@pytest.mark.parametrize("shape", pools.AVG.shapes, ids=str)
@pytest.mark.parametrize("quantized", [True, False], ids=["u8", "f32"])
def test_avg_pool(shape: PoolShape, quantized: bool) -> None:
    ceil, include_pad = shape.options.get("ceil", False), shape.options.get("include_pad", True)
    divisor = shape.options.get("divisor")
    geometry = (shape.kernel, shape.stride, shape.padding, ceil, include_pad, divisor)
    names = ("kernel", "stride", "padding", "ceil", "include_pad", "divisor")
    attrs = {**dict(zip(names, geometry, strict=True)), "y": Y if quantized else None}
    x = image(shape.n, shape.c, *shape.size)
    for machine, q, y in results(x, quantized, "avg_pool2d", attrs):
        if quantized:
            want = reference.avg_pool2d((q, *X), *geometry, Y)
            assert np.array_equal(y, want), machine
            assert len(np.unique(y)) > 5
        else:
            # k additions and a product, each eps/2 of the mean of |x|
            bound = (np.prod(shape.kernel) + 2) / 2 * EPS
            size = reference.avg_pool2d(np.abs(q), *geometry)
            assert (np.abs(y - reference.avg_pool2d(q, *geometry)) <= bound * size).all(), machine


@pytest.mark.parametrize("case", pools.ADAPTIVE.shapes, ids=str)
@pytest.mark.parametrize("quantized", [True, False], ids=["u8", "f32"])
def test_adaptive_avg_pool(case: tuple[tuple[int, ...], tuple[int, int]], quantized: bool) -> None:
    (n, c, h, w), size = case
    x = image(n, c, h, w)
    attrs = {"size": size, "y": Y if quantized else None}
    for machine, q, y in results(x, quantized, "adaptive_avg_pool2d", attrs):
        if quantized:
            assert np.array_equal(y, reference.adaptive_avg_pool2d((q, *X), size, Y)), machine
        else:
            bound = (h * w + 2) / 2 * EPS
            magnitude = reference.adaptive_avg_pool2d(np.abs(q), size)
            error = np.abs(y - reference.adaptive_avg_pool2d(q, size))
            assert (error <= bound * magnitude).all(), machine

# SPDX-License-Identifier: Apache-2.0
"""Values that random draws do not reach: the largest sums, results beyond 32 bits, stale halos."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ternary_ops import runtime
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.interpret import simulate
from ternary_ops.program.weight import Weight

ISAS = pytest.mark.parametrize("isa", runtime.available_isas())


def equal_everywhere(graph: Graph, x: NDArray[np.float32], isa: str) -> list[NDArray[np.generic]]:
    program = runtime.Program(graph, x.shape)
    with runtime.force_isa(isa):
        native = program.trace(x)
    for made, wanted in zip(native, simulate(graph, x), strict=True):
        np.testing.assert_array_equal(made, wanted)
    return native


@ISAS
@pytest.mark.parametrize("filters", [1, 3])
@pytest.mark.parametrize("channels", [256, 264, 276, 512])
def test_sums_of_full_bytes(isa: str, channels: int, filters: int) -> None:
    """All inputs 255, all weights 1: what 16-bit sums hold for 64 quads and no more."""
    weights = np.ones((16, filters, filters, channels), np.int8)
    weights[1::2] = -1
    scale = np.full(16, 2.0**-20, np.float32)
    graph = Graph(
        (
            Node("input", (), {"c": channels, "rank": 4}),
            Node("quantize", (0,), {"y": (1.0, 0)}),
            Node("conv2d", (1,), {"w": 0, "padding": (filters // 2, filters // 2)}),
        ),
        (Weight("w", "ternary", weights, scale, None),),
    )
    x = np.full((1, channels, 5, 37), 255.0, np.float32)
    made = equal_everywhere(graph, x, isa)[-1]
    assert made[0, 0, 2, 18] == channels * filters**2 * 255 * 2.0**-20


@ISAS
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_results_beyond_32_bits_saturate(isa: str, zeros: float) -> None:
    draw = np.random.default_rng(0)
    weights = draw.integers(-127, 128, (12, 3, 3, 8)).astype(np.int8)
    weights[draw.random(weights.shape[:3]) < zeros] = 0
    scale = np.full(12, 1e12, np.float32)
    graph = Graph(
        (
            Node("input", (), {"c": 8, "rank": 4}),
            Node("quantize", (0,), {"y": (1 / 64, 128)}),
            Node("conv2d", (1,), {"w": 0, "padding": (1, 1), "y": (1e-3, 7)}),
            Node("dequantize", (2,), {}),
        ),
        (Weight("w", "int8", weights, scale, None),),
    )
    x = draw.normal(size=(1, 8, 9, 21)).astype(np.float32)
    codes = equal_everywhere(graph, x, isa)[2]
    assert set(np.unique(codes)) >= {0, 255}


@ISAS
@pytest.mark.parametrize("kind", ["int8", "ternary"])
def test_padding_behind_a_depthwise_layer(isa: str, kind: str) -> None:
    """Its output is padded by the next layer: cells beside the image hold the zero point."""
    draw = np.random.default_rng(0)
    high = 128 if kind == "int8" else 2
    depthwise = draw.integers(1 - high, high, (12, 3, 3, 1)).astype(np.int8)
    dense = draw.integers(1 - high, high, (8, 3, 3, 12)).astype(np.int8)
    scale = np.full(12, 0.5 / high, np.float32)
    graph = Graph(
        (
            Node("input", (), {"c": 12, "rank": 4}),
            Node("quantize", (0,), {"y": (1 / 64, 128)}),
            Node("conv2d", (1,), {"w": 0, "padding": (1, 1), "groups": 12, "y": (1 / 32, 99)}),
            Node("conv2d", (2,), {"w": 1, "padding": (1, 1)}),
        ),
        (
            Weight("d", kind, depthwise, scale, draw.normal(size=12).astype(np.float32)),
            Weight("w", kind, dense, scale[:8], None),
        ),
    )
    for w in (16, 21, 33):
        equal_everywhere(graph, draw.normal(size=(2, 12, 9, w)).astype(np.float32), isa)

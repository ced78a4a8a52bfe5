# SPDX-License-Identifier: Apache-2.0
"""Functions of one number, transposed convolutions and resizing against float64 and PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import activations as cases
from fake_quant import FUNCTIONS
from programs import Builder
from small_networks import images
from torch import nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import UnsupportedModel, UnsupportedShape
from ternary_ops.program.graph import Graph
from ternary_ops.reference import activations

PARAMS = {name: params for name, (params, _) in cases.FUNCTIONS.items()}


def program(seed: int, fn: str, quantized: bool, y: Any = None) -> Graph:
    b = Builder(seed, c=5)
    x = b("quantize", 0, y=b.params(-6, 6)) if quantized else 0
    x = b("activation", x, fn=fn, params=PARAMS[fn], y=y)
    if y is not None:
        b("dequantize", x)
    return b.graph()


@pytest.mark.parametrize("fn", activations.FUNCTIONS)
def test_the_reference_is_pytorchs_function(fn: str) -> None:
    x = np.concatenate([np.linspace(-40, 40, 4001), np.random.standard_normal(4000) * 3])
    params = PARAMS[fn]
    want = FUNCTIONS[fn](torch.from_numpy(x.astype(np.float32)).double(), *params).float().numpy()
    got = activations.evaluate(fn, params, x.astype(np.float32))
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-12)


def test_erf_is_right_to_the_last_digits() -> None:
    x = np.linspace(-7, 7, 2001)
    np.testing.assert_allclose(activations._erf(x), [math.erf(v) for v in x], atol=1e-13)


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("fn", activations.FUNCTIONS)
def test_floats_stay_within_a_bound(fn: str, isa: str) -> None:
    """A handful of float32 functions in a row, each good to 2 ulp; terms that cancel are of the
    size of x, so the bound is relative to |x| + |f(x)|.
    """
    graph = program(0, fn, False)
    x = np.random.standard_normal((2, 5, 7, 9)).astype(np.float32) * 5
    if cases.DOMAINS.get(fn, (-1.0, 1.0))[0] > 0:
        x = np.abs(x) + np.float32(1e-3)
    with runtime.force_isa(isa):
        got = runtime.Program(graph, x.shape)(x)
    want = activations.evaluate(fn, PARAMS[fn], x).astype(np.float64)
    assert np.ptp(want) > 0
    assert (np.abs(got - want) <= 8 * 2**-23 * (np.abs(x) + np.abs(want))).all()


@pytest.mark.parametrize("y", [None, (0.031, 87)], ids=["to floats", "to u8"])
@pytest.mark.parametrize("fn", activations.FUNCTIONS)
def test_codes_are_exact(fn: str, y: Any) -> None:
    graph = program(1, fn, True, y)
    x = np.random.standard_normal((2, 5, 7, 9)).astype(np.float32) * 3
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            _, q, got, *_ = runtime.Program(graph, x.shape).trace(x)
        table = activations.over_codes(fn, graph.nodes[2].attrs["params"], *graph.values[1].y)
        want = table[q]
        if y is not None:
            steps = np.rint(want * (np.float32(1) / np.float32(y[0]))) + y[1]
            want = np.minimum(np.fmax(steps, 0), 255)  # NaN is code 0
        np.testing.assert_array_equal(got, want.astype(got.dtype), isa)


TRANSPOSED = [
    # kernel, stride, padding, output padding, dilation, groups
    (2, 2, 0, 0, 1, 1),
    (4, 2, 1, 0, 1, 1),
    (3, 2, 1, 1, 1, 3),
    (3, 2, 0, 0, 1, 1),
    (5, (2, 3), (2, 1), (1, 2), 1, 1),
    (3, 1, 1, 0, 2, 1),
    ((1, 3), (3, 1), 0, 0, (1, 2), 3),
    (2, 3, 0, 0, 1, 1),
    (4, 4, 3, 2, 1, 1),
    (3, 2, 2, 1, 2, 1),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolutions(case: Any) -> None:
    kernel, stride, padding, extra, dilation, groups = case
    layer = nn.ConvTranspose2d(
        6, 9, kernel, stride, padding, extra, groups, dilation=dilation, bias=kernel != 2
    )
    x = images(2, 6, 7, 5)
    compiled = tops.compile(nn.Sequential(layer).eval(), x)
    for size in ((2, 6, 7, 5), (1, 6, 4, 9)):
        x = images(*size, seed=1)
        with torch.no_grad():
            want = layer(x).numpy()
        got = compiled(x.numpy())
        assert np.ptp(want) > 0
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class _Resize(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, **self.options)


@pytest.mark.parametrize("options", [
    {"scale_factor": 2}, {"scale_factor": (0.5, 1.75)}, {"size": (3, 11)}, {"size": 4},
    {"scale_factor": 1.5, "mode": "bilinear"}, {"size": (13, 2), "mode": "bilinear"},
    {"size": (9, 1), "mode": "bilinear", "align_corners": True},
    {"scale_factor": (0.5, 1.75), "mode": "bicubic"}, {"size": (13, 3), "mode": "bicubic"},
    {"size": (9, 11), "mode": "bicubic", "align_corners": True}, {"size": 4, "mode": "area"},
    {"scale_factor": (0.5, 1.75), "mode": "nearest-exact"},
    {"size": (3, 11), "mode": "nearest-exact"},
], ids=str)  # fmt: skip
def test_resizing_equals_pytorch(options: dict[str, Any]) -> None:
    model = _Resize(**options)
    x = images(2, 5, 6, 8)
    got = tops.compile(model, x)
    for size in ((2, 5, 6, 8), (1, 5, 7, 5)):
        x = images(*size, seed=3)
        np.testing.assert_allclose(got(x.numpy()), model(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [
    {"scale_factor": 1.3}, {"scale_factor": 0.5, "mode": "area"},
    {"size": 3, "mode": "bicubic", "antialias": True},
    {"size": 3, "mode": "bilinear", "antialias": True},
    {"scale_factor": 2, "mode": "bilinear", "align_corners": True},
], ids=str)  # fmt: skip
def test_other_resizing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"interpolate\(\)"):
        tops.compile(_Resize(**options), images(1, 2, 6, 8))


def test_sizes_that_do_not_divide_are_refused() -> None:
    unshuffle = tops.compile(nn.PixelUnshuffle(2), images(1, 3, 6, 8))
    with pytest.raises(UnsupportedShape, match="divisible"):
        unshuffle(np.ones((1, 3, 5, 8), np.float32))
    shrink = tops.compile(_Resize(scale_factor=0.25), images(1, 3, 8, 8))
    with pytest.raises(UnsupportedShape, match="1 x 1"):
        shrink(np.ones((1, 3, 3, 8), np.float32))

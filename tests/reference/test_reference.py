# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference against PyTorch in float64, and the code layout against itself."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import ConvShape, PoolShape, conv2d, linear, operands, pools
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_ops import reference
from ternary_ops.errors import BadWeights, UnsupportedShape
from ternary_ops.layout import codes

RNG = np.random.default_rng(7)


def test_needs_no_torch() -> None:
    names = "ternary_ops.reference.arithmetic, ternary_ops.layout.codes, sys"
    script = f"import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("shape", conv2d.CASE.shapes, ids=str)
@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_conv2d_acc_equals_float64_convolution(shape: ConvShape, weights: str) -> None:
    o = operands(shape, weights, extreme=weights == "int8")
    got = reference.conv2d_acc(o.q, o.x_zero_point, o.w, **shape.geometry)
    x = torch.from_numpy(o.q).double() - o.x_zero_point
    want = F.conv2d(x, torch.from_numpy(o.w).double(), None, **shape.geometry)
    assert got.dtype == np.int64
    assert np.array_equal(got, want.numpy())


@pytest.mark.parametrize("shape", linear.CASE.shapes, ids=str)
def test_linear_acc_equals_float64_matmul(shape: object) -> None:
    o = operands(shape, "int8")  # type: ignore[arg-type]
    got = reference.linear_acc(o.q, o.x_zero_point, o.w)
    want = (torch.from_numpy(o.q).double() - o.x_zero_point) @ torch.from_numpy(o.w).double().T
    assert np.array_equal(got, want.numpy())


@pytest.mark.parametrize("shape", pools.MAX.shapes, ids=str)
def test_max_pool_equals_torch(shape: PoolShape) -> None:
    q = RNG.integers(1, 256, (shape.n, shape.c, *shape.size)).astype(np.uint8)
    geometry = (shape.kernel, shape.stride, shape.padding)
    got = reference.max_pool2d(q, *geometry, **shape.options)
    dilation, ceil = shape.options.get("dilation", 1), shape.options.get("ceil", False)
    want = F.max_pool2d(torch.from_numpy(q).float(), *geometry, dilation, ceil)
    assert got.dtype == np.uint8
    assert np.array_equal(got, want.numpy())
    x = RNG.standard_normal(q.shape).astype(np.float32) - 5  # negative: zero padding would win
    want = F.max_pool2d(torch.from_numpy(x), *geometry, dilation, ceil)
    assert np.array_equal(reference.max_pool2d(x, *geometry, **shape.options), want.numpy())


@pytest.mark.parametrize("shape", pools.AVG.shapes, ids=str)
def test_avg_pool_equals_torch(shape: PoolShape) -> None:
    q = RNG.integers(0, 256, (shape.n, shape.c, *shape.size)).astype(np.uint8)
    geometry = (shape.kernel, shape.stride, shape.padding)
    real = torch.from_numpy(reference.dequantize(q, 0.1, 31)).double()
    want = F.avg_pool2d(
        real,
        *geometry,
        shape.options.get("ceil", False),
        shape.options.get("include_pad", True),
        shape.options.get("divisor"),
    )
    got = reference.avg_pool2d((q, 0.1, 31), *geometry, **shape.options)
    assert got.dtype == np.float32
    assert got.shape == tuple(want.shape)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-5)
    got = reference.avg_pool2d(real.float().numpy(), *geometry, **shape.options)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", pools.ADAPTIVE.shapes, ids=str)
def test_adaptive_avg_pool_equals_torch(case: tuple[tuple[int, ...], tuple[int, int]]) -> None:
    shape, size = case
    q = RNG.integers(0, 256, shape).astype(np.uint8)
    real = torch.from_numpy(reference.dequantize(q, 0.1, 31)).double()
    got = reference.adaptive_avg_pool2d((q, 0.1, 31), size)
    np.testing.assert_allclose(got, F.adaptive_avg_pool2d(real, size).numpy(), rtol=1e-6, atol=1e-5)


def test_epilogue_is_one_float32_operation_a_step() -> None:
    acc = RNG.integers(-(2**26), 2**26, (3, 5, 4, 2))
    scale = RNG.uniform(1e-4, 1e-2, 5).astype(np.float32)
    bias = RNG.standard_normal(5).astype(np.float32) * 1000
    q2 = RNG.integers(0, 256, acc.shape).astype(np.uint8)
    got = reference.epilogue(acc, scale, bias, (q2, 0.3, 9), 0.0, 6e4, (250.0, 3))
    a = torch.from_numpy(acc).float() * torch.from_numpy(scale)[:, None, None]
    a = a + torch.from_numpy(bias)[:, None, None]
    a = a + (torch.from_numpy(q2).float() - 9) * torch.tensor(0.3)
    inverse = torch.tensor(1.0) / torch.tensor(250.0)
    want = torch.clamp(torch.round(a.clamp(0, 6e4) * inverse) + 3, 0, 255).to(torch.uint8)
    assert np.array_equal(got, want.numpy())
    assert 0.2 < np.mean(got != 3) < 1  # the activation and the scale leave something to compare


def test_add_is_the_epilogue_with_a_dequantized_operand() -> None:
    a, b = RNG.integers(0, 256, (2, 2, 3, 4, 4)).astype(np.uint8)
    got = reference.add((a, 0.2, 7), (b, 0.11, 200), 0.0, None, (0.15, 12))
    total = reference.dequantize(a, 0.2, 7) + reference.dequantize(b, 0.11, 200)
    assert np.array_equal(got, reference.clamp(total, 0.0, None, (0.15, 12)))
    assert got.min() == 12
    assert got.max() > 100


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_affine_params_cover_the_range(a: float, b: float) -> None:
    lo, hi = min(a, b), max(a, b)
    scale, zp = reference.affine_params(lo, hi)
    assert 0 <= zp <= 255
    assert scale > 0
    assert np.isfinite(np.float32(1) / scale)
    assert reference.dequantize(np.array([zp], np.uint8), scale, zp)[0] == 0
    low, high = reference.dequantize(np.array([0, 255], np.uint8), scale, zp)
    # The zero point is rounded, so each end may miss by half a step.
    step = float(scale) * 0.500001
    assert low <= min(lo, 0) + step
    assert high >= max(hi, 0) - step


def test_affine_params_refuse_what_is_not_a_range() -> None:
    for lo, hi in ((math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)):
        with pytest.raises(BadWeights, match="finite lo <= hi"):
            reference.affine_params(lo, hi)
    assert reference.affine_params(0.0, 0.0) == (1.0, 0)


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)
    assert reference.quantize(x, 1.0, 10).tolist() == [10, 12, 12, 10, 255, 0, 255, 0, 0]
    q = np.arange(256, dtype=np.uint8)
    assert np.array_equal(reference.quantize(reference.dequantize(q, 0.37, 93), 0.37, 93), q)


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(0, 11), st.integers(0, 2**32 - 1))
def test_codes_round_trip(rows: int, channels: int, seed: int) -> None:
    t = np.random.default_rng(seed).integers(-1, 2, (rows, channels)).astype(np.int8)
    packed = codes.pack_codes(t)
    assert packed.shape == (rows, -(-channels // 4))
    assert np.array_equal(codes.unpack_codes(packed, channels), t)


def test_codes_are_the_documented_bits() -> None:
    assert codes.pack_codes(np.array([[0, 1, -1, 1, -1]], np.int8)).tolist() == [
        [0b01_11_01_00, 0b11]
    ]
    t = RNG.integers(-1, 2, (3, 6, 2, 5)).astype(np.int8)
    packed = codes.conv_codes(t)
    assert packed.shape == (3, 2, 5, 2)
    assert packed[2, 1, 4, 1] == codes.pack_codes(t[2, 4:, 1, 4])[0]
    assert np.array_equal(codes.conv_from_codes(packed, 6), t)


def test_invalid_codes_are_named_by_position() -> None:
    good = codes.pack_codes(RNG.integers(-1, 2, (3, 7)).astype(np.int8))
    bad = good.copy()
    bad[1, 1] |= 0b10 << 2
    bad[1, 1] &= 0b11_11_10_11
    with pytest.raises(BadWeights, match=r"invalid code 10 at \(1, 5\)"):
        codes.validate(bad, 7)
    bad = good.copy()
    bad[2, 1] |= 0b01 << 6
    with pytest.raises(BadWeights, match=r"padding at \(2, 7\)"):
        codes.unpack_codes(bad, 7)
    with pytest.raises(BadWeights, match=r"2 at \(0, 1\)"):
        codes.pack_codes(np.array([[1, 2]], np.int8))
    with pytest.raises(UnsupportedShape, match=r"uint8 \[\.\.\., 2\]"):
        codes.validate(good[:, :1], 7)


def test_pad_int8() -> None:
    w = RNG.integers(-128, 128, (2, 3, 3, 5)).astype(np.int8)
    padded = codes.pad_int8(w)
    assert padded.shape == (2, 3, 3, 8)
    assert np.array_equal(padded[..., :5], w)
    assert not padded[..., 5:].any()


def test_reference_refuses_shapes_that_do_not_fit() -> None:
    q = np.zeros((1, 4, 3, 3), np.uint8)
    with pytest.raises(UnsupportedShape, match="5 pixels that a filter spans"):
        reference.conv2d_acc(q, 0, np.ones((1, 4, 5, 5), np.int8))
    with pytest.raises(UnsupportedShape, match="C=4"):
        reference.conv2d_acc(q, 0, np.ones((1, 3, 1, 1), np.int8))

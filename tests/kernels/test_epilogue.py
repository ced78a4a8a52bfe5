# SPDX-License-Identifier: Apache-2.0
"""Codes as kernels round them, both ways, against the reference: ties, bounds, huge values, NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from ternary_ops import reference
from ternary_ops.kernels import _epilogue


@triton.jit
def _codes(x, y, scale, inverse, zero_point, CODES: tl.constexpr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    out = _epilogue.finish(tl.load(x + at), scale, 0.0, inverse, zero_point, False, CODES)
    tl.store(y + at, out.to(tl.uint8))


@pytest.mark.parametrize("codes", [1, 2])
@pytest.mark.parametrize("zero_point", [0, 1, 127, 128, 254, 255])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0371])
def test_codes_are_those_of_the_reference(codes: int, zero_point: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(zero_point)
    ties = torch.arange(-300, 300) * 0.5
    huge = torch.tensor([1.0, 1e3, 8388609.0, 2147483392.0, 2147483648.0, 1e12, torch.inf])
    rest = torch.randn(2048 - 600 - 15, generator=generator) * 90
    x = torch.cat([ties, huge, -huge, torch.tensor([torch.nan]), rest])
    y = torch.full(x.shape, 77, dtype=torch.uint8)
    inverse = float(np.float32(1.0) / np.float32(scale))
    _codes[(1,)](x, y, 1.0, inverse, float(zero_point), CODES=codes, COUNT=len(x))
    expected = reference.quantize(x.numpy(), np.float32(scale), zero_point)
    wrong = y.numpy() != expected
    assert not wrong.any(), (x[wrong][:5], y[wrong][:5], expected[wrong][:5])


def test_output_says_how() -> None:
    assert _epilogue.Output(torch.uint8).codes == 2
    assert _epilogue.Output(torch.float32).codes == 0

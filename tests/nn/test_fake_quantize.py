# SPDX-License-Identifier: Apache-2.0
"""The native loops of fake quantization: twins of the tensor code, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ternary_ops import _native, reference
from ternary_ops.nn import fake_quant

RANGES = [(-2.0, 3.0), (0.0, 4.0), (-1.5, 0.0), (-1e-3, 2e-3), (-1e37, 2e37)]


def both_ways(x: Tensor, grad: Tensor, lo: float, hi: float, kind: type) -> list[Tensor]:
    """q, the gradient of x, and that of the bounds."""
    x, bounds = x.clone().requires_grad_(), torch.tensor([lo, hi]).requires_grad_()
    q = kind.apply(x, bounds, *fake_quant.affine_params(bounds))  # type: ignore[attr-defined]
    q.backward(grad)
    assert x.grad is not None and bounds.grad is not None
    return [q.detach(), x.grad, bounds.grad]


def random_pair(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
    )


@pytest.fixture(params=_native.core().available_isas())
def isa(request: pytest.FixtureRequest):
    core = _native.core()
    core.set_isa(request.param)
    yield request.param
    core.set_isa("")


@pytest.mark.parametrize("lo, hi", RANGES)
@pytest.mark.parametrize("shape", [(1,), (15,), (3, 17), (2, 5, 7, 9), (3, 16, 40, 40)])
def test_native_is_the_twin_of_tensor_code(isa, lo, hi, shape):
    x, grad = random_pair(shape, 1)
    x = x * ((hi - lo) / 5)
    native = both_ways(x, grad, lo, hi, fake_quant._QuantizeNative)
    plain = both_ways(x, grad, lo, hi, fake_quant._Quantize)
    assert torch.equal(native[0], plain[0])
    assert torch.equal(native[1], plain[1])
    torch.testing.assert_close(native[2], plain[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lo, hi", RANGES[:4])
def test_forward_is_the_reference_and_bounds_follow_float64(lo, hi):
    x, grad = random_pair((4, 3, 50, 50), 2)
    q, dx, by_bounds = both_ways(x, grad, lo, hi, fake_quant._QuantizeNative)
    scale, zero_point = reference.affine_params(lo, hi)
    steps = reference.quantize(x.numpy(), scale, zero_point).astype(np.int64) - zero_point
    assert np.array_equal(q.numpy(), steps)
    exact, g = x.numpy().astype(np.float64) / scale, grad.numpy().astype(np.float64) / scale
    below, above = np.rint(exact) < -zero_point, np.rint(exact) > 255 - zero_point
    rounding = ((np.rint(exact) - exact) * g)[~below & ~above].sum() / 255
    expected = np.array([g[below].sum() - rounding, g[above].sum() + rounding])
    expected *= np.array([lo < 0, hi > 0]) / np.sqrt(x.numel() * 255)
    np.testing.assert_allclose(by_bounds.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert np.array_equal(dx.numpy() == 0, below | above)


def test_threads_change_nothing(isa):
    x, grad = random_pair((5, 7, 123, 45), 3)
    before, core = torch.get_num_threads(), _native.core()
    results = []
    try:
        core.set_num_threads(4)
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(both_ways(x, grad, -1.0, 2.0, fake_quant._QuantizeNative))
    finally:
        torch.set_num_threads(before)
        core.set_num_threads(0)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_any_layout_keeps_values_at_their_places():
    x, grad = random_pair((2, 6, 8, 10), 4)
    expected = both_ways(x, grad, -1.0, 2.0, fake_quant._QuantizeNative)
    last = torch.channels_last
    for a, b in [
        (x.contiguous(memory_format=last), grad),
        (x, grad.contiguous(memory_format=last)),
        (x.transpose(2, 3).contiguous().transpose(2, 3), grad),
        (x, grad.transpose(1, 3).contiguous().transpose(1, 3)),
    ]:
        q, dx, bounds = both_ways(a, b, -1.0, 2.0, fake_quant._QuantizeNative)
        assert torch.equal(q, expected[0]) and torch.equal(dx, expected[1])
        torch.testing.assert_close(bounds, expected[2], rtol=1e-4, atol=1e-6)


def test_nan_stays_and_infinity_is_clipped(isa):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38, 0.3])
    q, dx, _ = both_ways(x, torch.ones(5), -1.0, 2.0, fake_quant._QuantizeNative)
    plain, plain_dx, _ = both_ways(x, torch.ones(5), -1.0, 2.0, fake_quant._Quantize)
    assert bool(q[0].isnan()) and bool(q[1:].isfinite().all())
    torch.testing.assert_close(q, plain, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(dx, plain_dx, rtol=0, atol=0, equal_nan=True)


def test_other_dtypes_and_unset_ranges_take_the_tensor_path():
    bounds = torch.tensor([-1.0, 2.0]).requires_grad_()
    x = torch.randn(20, generator=torch.Generator().manual_seed(5))
    for dtype in (torch.float64, torch.bfloat16):
        q, _ = fake_quant.quantize(x.to(dtype), bounds)
        assert q.grad_fn is not None and "Native" not in type(q.grad_fn).__name__
    q, scale = fake_quant.quantize(x, torch.full((2,), float("nan")).requires_grad_())
    assert q is x and float(scale) == 1.0

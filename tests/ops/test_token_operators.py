# SPDX-License-Identifier: Apache-2.0
"""Operators of token networks on a CPU: PyTorch's own checks, values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ternary_ops as tops
from ternary_ops import reference
from ternary_ops.errors import UnsupportedShape


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(2)
    shapes = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), (3, 5, 7))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def test_opcheck() -> None:
    ops = torch.ops.ternary_ops
    tops.ops.register()
    torch.library.opcheck(ops.attention.default, tuple(operands()), {"scale": 0.5})
    x = torch.randn(2, 3, 9, requires_grad=True)
    norm = (x, torch.randn(9), torch.randn(9), 1e-5, 0.1, 100)
    torch.library.opcheck(ops.layer_norm_codes.default, norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_its_formula_and_has_its_gradients(dtype: torch.dtype) -> None:
    parts = operands(dtype)
    q, k, v, bias = (t.detach().double().requires_grad_() for t in parts)
    want = torch.softmax(0.7 * q @ k.mT + bias, -1) @ v
    found = tops.ops.attention(*parts, scale=0.7)
    assert found.dtype == dtype
    loose = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), want, rtol=loose, atol=loose)
    signs = torch.randn(want.shape).double()
    (want * signs).sum().backward()
    (found.double() * signs).sum().backward()
    for ours, theirs in zip(parts, (q, k, v, bias), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=5 * loose, atol=5 * loose)


def test_layer_norm_codes_are_those_of_programs() -> None:
    x, weight, bias = torch.randn(4, 6, 40), torch.randn(40), torch.randn(40)
    found = tops.ops.layer_norm_codes(x, weight, bias, 1e-6, 0.03, 90)
    floats = F.layer_norm(x.double(), (40,), weight.double(), bias.double(), 1e-6)
    rounded = (floats / 0.03).round().add(90).clamp(0, 255)
    assert (found.double() - rounded).abs().max() <= 1
    assert (found.double() != rounded).double().mean() < 0.01
    given = x.reshape(24, 40).numpy(), weight.numpy(), bias.numpy(), 1e-6, (0.03, 90)
    np.testing.assert_array_equal(found.reshape(24, 40), reference.layer_norm_codes(*given))


def test_bad_shapes_are_named() -> None:
    q, k, v, bias = operands()
    with pytest.raises(UnsupportedShape, match=r"attention q \[N, H, L, K\]"):
        tops.ops.attention(q, v, k, bias, scale=1.0)
    with pytest.raises(UnsupportedShape, match="finite scale"):
        tops.ops.attention(q, k, v, scale=float("nan"))
    with pytest.raises(UnsupportedShape, match="eps > 0"):
        tops.ops.layer_norm_codes(q, torch.ones(4), None, 0.0, 0.1, 0)

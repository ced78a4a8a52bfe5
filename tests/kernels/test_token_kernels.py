# SPDX-License-Identifier: Apache-2.0
"""The kernels of token networks under the interpreter."""

from __future__ import annotations

from typing import Any

import interpreter
import numpy as np
import pytest
import torch
from cases import attention, layer_norm_codes
from torch import Tensor

from ternary_ops.errors import UnsupportedShape
from ternary_ops.ops._tokens import _gpu_attention, _gpu_norm

BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def operands(shape: attention.AttentionShape, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(size).to(dtype) for size in shape.sizes[:3]]


def wanted(parts: list[Tensor], bias: Tensor | None, scale: float) -> Any:
    given = [None if t is None else t.double().numpy() for t in (*parts, bias)]
    return attention.CASE.reference(*given, scale)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", attention.CASE.shapes, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention(shape: attention.AttentionShape, with_bias: bool, dtype: torch.dtype) -> None:
    parts = operands(shape, dtype)
    bias = 3 * torch.randn(shape.sizes[3]) if with_bias else None
    made = _gpu_attention(*parts, bias, scale=1.7)
    want = wanted(parts, bias, 1.7)
    assert made.dtype == dtype and made.isfinite().all()
    off = np.abs(made.double().numpy() - want).max()
    assert off <= BOUNDS[dtype] * max(1.0, np.abs(want).max())


def test_scores_of_any_size_do_not_overflow() -> None:
    """And the largest of a row may stand in its last block of keys."""
    q, k, v = operands(attention.AttentionShape(1, 1, 3, 100, 4, 4), torch.float32)
    k[:, :, 97] *= 50
    made = _gpu_attention(40 * q, k, v, scale=2.0)
    np.testing.assert_allclose(made, wanted([40 * q, k, v], None, 2.0), atol=1e-4)


def test_scores_stay_out_of_memory() -> None:
    parts = operands(attention.AttentionShape(1, 2, 64, 128, 16, 16), torch.float16)
    with interpreter.traffic() as moved:
        y = _gpu_attention(*parts, scale=0.25)
    assert (moved.loaded, moved.stored) == (sum(t.nbytes for t in parts), y.nbytes)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [*layer_norm_codes.CASE.shapes, (3, 5, 33)], ids=str)
def test_layer_norm_codes(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    x = (3 * torch.randn(shape) + 5).to(dtype)
    weight, shift = torch.randn(shape[-1]), torch.randn(shape[-1]) if bias else None
    made = _gpu_norm(x, weight, shift, 1e-6, 0.02, 117)
    rows = x.float().reshape(-1, shape[-1]).numpy()
    given = rows, weight.numpy(), None if shift is None else shift.numpy(), 1e-6
    want = layer_norm_codes.CASE.reference(*given, (0.02, 117)).reshape(shape)
    apart = np.abs(made.int().numpy() - want.astype(np.int32))
    # Sums in another order: a value next to a half may go the other way.
    assert made.dtype == torch.uint8 and apart.max() <= 1 and apart.mean() < 0.01
    assert x.numel() < 100 or len(np.unique(want)) > 100


def test_layer_norm_codes_move_each_token_once() -> None:
    x, weight = torch.randn(64, 128).half(), torch.randn(128)
    with interpreter.traffic() as moved:
        y = _gpu_norm(x, weight, None, 1e-5, 0.05, 128)
    programs = 64 // (2048 // 128)
    assert moved.stored == y.nbytes and moved.loaded == x.nbytes + programs * weight.nbytes


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = operands(attention.AttentionShape(1, 2, 3, 4, 5, 6), torch.float32)
    for parts, match in (((q, v, k), "heads before tokens"), ((q, k.half(), v), "one float dtype")):
        with pytest.raises(UnsupportedShape, match=match):
            _gpu_attention(*parts, scale=1.0)
    with pytest.raises(UnsupportedShape, match="a float bias"):
        _gpu_attention(q, k, v, torch.zeros(2, 4, 3), scale=1.0)
    with pytest.raises(UnsupportedShape, match="y_zero_point"):
        _gpu_norm(q, torch.ones(5), None, 1e-5, 0.1, 256)
    with pytest.raises(UnsupportedShape, match="weight float32"):
        _gpu_norm(q, torch.ones(4), None, 1e-5, 0.1, 0)
    assert _gpu_attention(q[:0], k[:0], v[:0], scale=1.0).shape == (0, 2, 3, 6)
    assert _gpu_norm(q[:0], torch.ones(5), None, 1e-5, 0.1, 3).shape == (0, 2, 3, 5)

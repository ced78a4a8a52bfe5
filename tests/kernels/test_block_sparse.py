# SPDX-License-Identifier: Apache-2.0
"""block_sparse_conv2d's kernel under the interpreter, against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ternary_ops import reference
from ternary_ops.kernels import _implicit_gemm, block_sparse_conv2d
from ternary_ops.ops import blocks as layout

HALF_STEP = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
# x, output channels, filter, block; stride, padding, dilation, groups.
CASES = {
    "64x64": ((1, 128, 5, 6), 128, (3, 3), (64, 64), ((1, 1), (1, 1), (1, 1), 1)),
    "ends": ((2, 50, 7, 9), 50, (3, 3), (32, 16), ((2, 2), (3, 1), (1, 2), 1)),
    "no power of two": ((1, 96, 3, 5), 96, (1, 7), (48, 96), ((1, 1), (0, 3), (1, 1), 1)),
    "128x128": ((1, 130, 2, 3), 200, (1, 1), (128, 128), ((1, 1), (0, 0), (1, 1), 1)),
    "one pixel": ((1, 32, 1, 1), 16, (1, 1), (16, 32), ((1, 1), (0, 0), (1, 1), 1)),
    "groups": ((1, 64, 3, 5), 64, (3, 3), (16, 16), ((1, 2), (1, 1), (1, 1), 2)),
    "rows across groups": ((1, 64, 3, 5), 48, (3, 3), (32, 16), ((1, 1), (1, 1), (1, 1), 2)),
    "4x4": ((1, 20, 5, 4), 48, (3, 3), (4, 4), ((1, 1), (1, 1), (2, 1), 1)),
    "1x16": ((2, 40, 4, 4), 20, (3, 3), (1, 16), ((2, 1), (1, 1), (1, 1), 1)),
    "8x8 of few": ((1, 5, 6, 7), 12, (5, 3), (8, 8), ((1, 1), (2, 1), (1, 1), 1)),
    "depthwise": ((2, 12, 6, 5), 12, (3, 3), (4, 4), ((1, 1), (1, 1), (1, 1), 12)),
}
EVERY = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def junk_in_new_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel forgets to write shall be seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def sparse_weight(name: str, dtype: torch.dtype) -> Tensor:
    """[O, I, R, S] of which about half the blocks are zero."""
    x, out, (r, s), block, (*_, groups) = CASES[name]
    made = layout.from_dense(torch.randn(out, x[1] // groups, r, s).to(dtype), block)
    kept = torch.rand(len(made.values)) < 0.5
    kept[0] = True
    thinned = made._replace(values=made.values * kept[:, None, None])
    return layout.to_dense(thinned, out, x[1] // groups, (r, s)).permute(0, 3, 1, 2).to(dtype)


def check(name: str, dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> None:
    size, out, filter_, block, window = CASES[name]
    x, blocks = torch.randn(size).to(dtype), layout.from_dense(weight, block)
    made = block_sparse_conv2d.run(x, *blocks, out, filter_, bias, *window)
    image, w = x.double().numpy(), weight.double().numpy()
    b = np.zeros(out) if bias is None else bias.numpy()
    wanted = reference.conv2d(image, w, None, b, *window)
    largest = reference.conv2d(abs(image), abs(w), None, abs(b), *window)
    assert made.dtype == dtype and made.shape == wanted.shape
    off = abs(made.double().numpy() - wanted)
    assert (off <= 1.01 * HALF_STEP[dtype] * abs(wanted) + 1e-6 * largest + 1e-7).all()


@EVERY
@pytest.mark.parametrize("dtype", HALF_STEP)
def test_floats_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    bias = None if dtype == torch.float16 else torch.randn(CASES[name][1])
    check(name, dtype, sparse_weight(name, dtype), bias)


@pytest.mark.parametrize("name", ["64x64", "4x4"])
def test_values_of_another_type_are_not_rounded(name: str) -> None:
    check(name, torch.float16, sparse_weight(name, torch.float32), None)


@pytest.mark.parametrize("name", ["64x64", "ends", "4x4", "depthwise"])
def test_nothing_kept_leaves_the_bias(name: str) -> None:
    size, out, filter_, block, window = CASES[name]
    blocks = layout.from_dense(torch.zeros(out, size[1] // window[3], *filter_), block)
    assert len(blocks.values) == 0
    bias = torch.randn(out)
    made = block_sparse_conv2d.run(torch.randn(size), *blocks, out, filter_, bias, *window)
    np.testing.assert_array_equal(made.numpy(), bias[:, None, None].expand_as(made).numpy())


def test_absent_blocks_are_not_multiplied() -> None:
    weight = torch.zeros(64, 64, 1, 1)
    weight[:, 32:] = torch.randn(64, 32, 1, 1)
    x = torch.full((1, 64, 3, 3), torch.nan)
    x[:, 32:] = torch.randn(1, 32, 3, 3)
    blocks = layout.from_dense(weight, (32, 32))
    ones = ((1, 1), (0, 0), (1, 1), 1)
    made = block_sparse_conv2d.run(x, *blocks, 64, (1, 1), None, *ones)
    wanted = torch.einsum("oi,nihw->nohw", weight[:, 32:, 0, 0], x[:, 32:])
    np.testing.assert_allclose(made.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_indices_of_32_bits_and_a_batch_too_large_for_one_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_implicit_gemm, "_MOST_PIXELS", 30)
    size, out, filter_, block, window = CASES["ends"]
    weight, x = sparse_weight("ends", torch.float32), torch.randn(size)
    values, crow, col = layout.from_dense(weight, block)
    made = block_sparse_conv2d.run(x, values, crow.int(), col.int(), out, filter_, None, *window)
    wanted = reference.conv2d(x.numpy(), weight.numpy(), None, None, *window)
    np.testing.assert_allclose(made.numpy(), wanted, rtol=1e-4, atol=1e-4)

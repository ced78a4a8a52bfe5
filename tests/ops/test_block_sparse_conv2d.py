# SPDX-License-Identifier: Apache-2.0
"""block_sparse_conv2d: every case on every instruction set within the bound; blocks are torch's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from cases import ConvShape, Operands, block_sparse_conv2d, float_bound, normalized_error, operands
from machines import machines

import ternary_ops as tops
from ternary_ops._native import core


@pytest.fixture(autouse=True)
def restore_core() -> Iterator[None]:
    yield
    core().set_isa("")
    core().set_num_threads(0)


@pytest.mark.parametrize(
    ("shape", "block"), block_sparse_conv2d.CASE.shapes, ids=lambda value: str(value)
)
def test_block_sparse_is_within_the_bound(shape: ConvShape, block: tuple[int, int]) -> None:
    o = operands(shape, seed=8)
    rng = np.random.default_rng(8)
    weight = rng.standard_normal(shape.weight).astype(np.float32)
    n, m = block
    for row in range(0, shape.o, n):
        for col in range(0, shape.weight[1], m):
            keep = rng.random(shape.kernel) < shape.density
            weight[row : row + n, col : col + m] *= keep
    blocks = tops.ops.blocks.from_dense(torch.from_numpy(weight), block)
    dense = tops.ops.blocks.to_dense(blocks, shape.o, shape.weight[1], shape.kernel)
    assert np.array_equal(dense.permute(0, 3, 1, 2).numpy(), weight)
    unit = Operands(**{**vars(o), "scale": np.ones(shape.o, np.float32)})
    packed = tops.ops.blocks.pack(blocks, shape.o, shape.c, shape.kernel, shape.groups)
    arguments = (shape.o, shape.kernel, torch.from_numpy(o.bias))
    for machine in machines():
        y = tops.ops.block_sparse_conv2d(
            torch.from_numpy(o.x), blocks, *arguments, **shape.geometry, packed=packed
        )
        assert normalized_error(shape, unit, y.numpy(), weight) <= float_bound(shape.terms), machine
    y = tops.ops.block_sparse_conv2d(torch.from_numpy(o.x), blocks, *arguments, **shape.geometry)
    assert normalized_error(shape, unit, y.numpy(), weight) <= float_bound(shape.terms)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_blocks_are_torch_bsr() -> None:
    weight = torch.randn(8, 12) * (
        torch.rand(4, 4).repeat_interleave(2, 0).repeat_interleave(3, 1) > 0.5
    )
    ours = tops.ops.blocks.from_dense(weight, (2, 3))
    theirs = tops.ops.blocks.from_bsr(weight.to_sparse_bsr((2, 3)))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    x = torch.randn(3, 12, 1, 1)
    y = tops.ops.block_sparse_conv2d(x, theirs, 8, 1)
    torch.testing.assert_close(y[:, :, 0, 0], x[:, :, 0, 0] @ weight.T)

# SPDX-License-Identifier: Apache-2.0
"""Filters kept as dense blocks of N output by M input channels at one tap.

values        [nnz, N, M]        the blocks that are not empty, row by row
crow_indices  [ceil(O/N) + 1]    int64 or int32: row b owns blocks crow[b] .. crow[b + 1]
col_indices   [nnz]              tap * ceil(I/M) + input block, tap = r * S + s, rising within a row

This is torch.sparse_bsr of the matrix [O, R*S*I]; a linear layer is R = S = 1. Where channels do
not divide, the last block is filled with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ternary_ops.errors import BadWeights, UnsupportedShape, need


class Blocks(NamedTuple):
    """The three tensors block_sparse_conv2d takes."""

    values: torch.Tensor
    crow_indices: torch.Tensor
    col_indices: torch.Tensor


def from_dense(weight: torch.Tensor, block: tuple[int, int]) -> Blocks:
    """Keep the blocks of a [O, I, R, S] or [N, K] weight that hold anything but zeros."""
    if weight.dim() not in (2, 4) or min(block) < 1:
        raise UnsupportedShape(
            need(
                "a weight [O, I, R, S] or [N, K] and sides of blocks >= 1",
                f"{list(weight.shape)} and {block}",
                "Reshape the weight.",
            )
        )
    if weight.dim() == 2:
        weight = weight[:, :, None, None]
    grid = _grid(weight.permute(0, 2, 3, 1), block)  # [O/N, taps * I/M, N, M]
    kept = (grid != 0).flatten(2).any(2)
    crow = torch.zeros(grid.shape[0] + 1, dtype=torch.int64)
    crow[1:] = kept.sum(1).cumsum(0)
    return Blocks(grid[kept].contiguous(), crow, kept.nonzero()[:, 1].contiguous())


def from_bsr(matrix: torch.Tensor) -> Blocks:
    """Take over a torch.sparse_bsr matrix [N, K], or [O, R*S*I] of a filter with I innermost.

    Raises UnsupportedShape for another layout, a batch of matrices, or a block with dense axes.
    """
    if matrix.layout != torch.sparse_bsr or matrix.dim() != 2 or matrix.dense_dim():
        got = f"{matrix.layout} {list(matrix.shape)}"
        raise UnsupportedShape(
            need("one torch.sparse_bsr matrix for from_bsr", got, "Call .to_sparse_bsr(block).")
        )
    return Blocks(matrix.values(), matrix.crow_indices(), matrix.col_indices())


def to_dense(
    blocks: Blocks, out_channels: int, channels: int, kernel_size: Sequence[int]
) -> torch.Tensor:
    """Spread blocks over a float32 [O, R, S, I] weight; differentiable in the values."""
    values, crow, col = blocks
    n, m = values.shape[1:]
    rows, inner = -(-out_channels // n), -(-channels // m)
    taps = kernel_size[0] * kernel_size[1]
    grid = values.new_zeros(rows, taps * inner, n, m, dtype=torch.float32)
    grid = grid.index_put(_positions(crow, col), values.float())
    dense = grid.reshape(rows, taps, inner, n, m).permute(0, 3, 1, 2, 4)
    dense = dense.reshape(rows * n, taps, inner * m)[:out_channels, :, :channels]
    return dense.reshape(out_channels, *kernel_size, channels)


def gather(dense: torch.Tensor, like: Blocks) -> torch.Tensor:
    """The values of [O, R, S, I] at the blocks of `like`: the transpose of to_dense."""
    n, m = like.values.shape[1:]
    return _grid(dense, (n, m))[_positions(like.crow_indices, like.col_indices)]


def _grid(dense: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """[O, R, S, I] -> [ceil(O/N), R*S*ceil(I/M), N, M], the last blocks filled with zeros."""
    n, m = block
    o, r, s, i = dense.shape
    padded = torch.nn.functional.pad(dense.reshape(o, r * s, i), (0, -i % m, 0, 0, 0, -o % n))
    rows, inner = padded.shape[0] // n, padded.shape[2] // m
    grid = padded.reshape(rows, n, r * s, inner, m).permute(0, 2, 3, 1, 4)
    return grid.reshape(rows, r * s * inner, n, m)


def _positions(crow: torch.Tensor, col: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(crow.shape[0] - 1, device=crow.device)
    return rows.repeat_interleave(crow.diff(), output_size=col.shape[0]), col.long()


def validate(blocks: Blocks, columns: int) -> None:
    """Check the indices' values; raises BadWeights naming the first offending position."""
    crow, col = blocks.crow_indices.long(), blocks.col_indices.long()
    nnz = col.shape[0]
    if crow[0] != 0 or crow[-1] != nnz or bool((crow.diff() < 0).any()):
        do = "Rebuild the blocks from the dense weight."
        raise BadWeights(need(f"crow_indices that rise from 0 to {nnz}", crow.tolist()[:8], do))
    row_start = torch.zeros(nnz + 1, dtype=torch.bool)
    row_start[crow] = True
    disordered = torch.zeros(nnz, dtype=torch.bool)
    disordered[1:] = (col.diff() <= 0) & ~row_start[1:nnz]
    bad = (col < 0) | (col >= columns) | disordered
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise BadWeights(
            need(
                f"col_indices in 0..{columns - 1} that rise within a row",
                f"{int(col[at])} at {at}",
                "Rebuild the blocks from the dense weight.",
            )
        )

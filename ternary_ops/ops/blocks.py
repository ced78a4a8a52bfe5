# SPDX-License-Identifier: Apache-2.0
"""Filters as dense blocks (`ternary_ops.bsr`), and packed for the native core."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ternary_ops.bsr import Blocks, from_bsr, from_dense, gather, to_dense, validate
from ternary_ops.ops import _native_call

__all__ = ["Blocks", "from_bsr", "from_dense", "gather", "pack", "to_dense", "validate"]


def pack(
    blocks: Blocks,
    out_channels: int,
    in_channels: int,
    kernel_size: Sequence[int],
    groups: int = 1,
) -> torch.Tensor:
    """Check the blocks and pack them, the `packed` of block_sparse_conv2d: uint8 [bytes].

    in_channels counts all groups. Raises BadWeights for an index out of range or out of order.
    """
    channels = in_channels // groups
    inner = -(-channels // blocks.values.shape[2])
    validate(blocks, kernel_size[0] * kernel_size[1] * inner)
    dense = to_dense(blocks, out_channels, channels, kernel_size)
    return _native_call.pack(dense.detach(), "sparse", channels, groups, float_x=True)

# SPDX-License-Identifier: Apache-2.0
"""Drop-in layers: trainable fake-quantized twins of torch.nn, packed ones for inference, and float
ones whose weights are mostly zero blocks.
"""

from ternary_ops.nn.activation_sparsity import InputZeros, KWinners, input_zeros
from ternary_ops.nn.block_sparse import BlockSparseConv2d, BlockSparseLinear
from ternary_ops.nn.block_sparse_base import BlockSparseLayer
from ternary_ops.nn.conv import TernaryConv2d
from ternary_ops.nn.linear import TernaryLinear
from ternary_ops.nn.packed import PackedConv2d, PackedLayer, PackedLinear
from ternary_ops.nn.ternary import TernaryLayer

__all__ = [
    "BlockSparseConv2d",
    "BlockSparseLayer",
    "BlockSparseLinear",
    "InputZeros",
    "KWinners",
    "PackedConv2d",
    "PackedLayer",
    "PackedLinear",
    "TernaryConv2d",
    "TernaryLayer",
    "TernaryLinear",
    "input_zeros",
]

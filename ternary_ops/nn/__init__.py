# SPDX-License-Identifier: Apache-2.0
"""Drop-in layers: trainable fake-quantized twins of torch.nn, and packed ones for inference."""

from ternary_ops.nn._base import TernaryLayer
from ternary_ops.nn.conv import TernaryConv2d
from ternary_ops.nn.linear import TernaryLinear
from ternary_ops.nn.packed import PackedConv2d, PackedLayer, PackedLinear

__all__ = [
    "PackedConv2d",
    "PackedLayer",
    "PackedLinear",
    "TernaryConv2d",
    "TernaryLayer",
    "TernaryLinear",
]

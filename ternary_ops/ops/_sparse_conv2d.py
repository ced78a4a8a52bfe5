# SPDX-License-Identifier: Apache-2.0
"""conv2d that stores and computes only the quads that are not empty. Operands as in _conv2d."""

from __future__ import annotations

from typing import Any

import torch

from ternary_ops.ops._conv2d import define_convolution
from ternary_ops.reference.arithmetic import Pair, pair

_OP = define_convolution("sparse_conv2d", "sparse")


def sparse_conv2d(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    **options: Any,
) -> torch.Tensor:
    """Do what conv2d does, in time and memory proportional to the quads that are not empty.

    A quad is four consecutive input channels of one filter tap for one output channel. `packed` is
    prepack(codes, "sparse", C, groups, float_x). Everything else, errors included, as conv2d; for
    uint8 x the result is the same bit for bit. For float x a zero weight counts as absent: an
    infinity under it adds nothing (in conv2d: NaN, as in PyTorch).
    """
    geometry = (pair(stride), pair(padding), pair(dilation), groups)
    y: torch.Tensor = _OP(x, codes, scale, bias, *geometry, **options)
    return y

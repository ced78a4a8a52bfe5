# SPDX-License-Identifier: Apache-2.0
"""From accumulators to results: the integer semantics of docs/architecture.md, on a GPU.

Whoever launches a kernel that uses this passes enable_fp_fusion=False: product and sum are rounded
one after the other, as everywhere else.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Output(NamedTuple):
    """dtype of y; for uint8 its scale and zero point."""

    dtype: torch.dtype
    scale: float = 1.0
    zero_point: int = 0


@triton.jit
def finish(acc, scale, bias, inverse, zero_point, HAS_BIAS: tl.constexpr, CODES: tl.constexpr):
    """float32(acc) * scale + bias; as codes (float32 integers 0..255) where CODES.

    scale and bias broadcast over acc. Rounding is half to even: adding 1.5 * 2**23 leaves no room
    for a fraction.
    """
    y = acc.to(tl.float32) * scale
    if HAS_BIAS:
        y = y + bias
    if CODES:
        y = y * inverse
        y = tl.minimum(tl.maximum(y, -1024.0), 1024.0)
        y = (y + 12582912.0) - 12582912.0
        y = tl.minimum(tl.maximum(y + zero_point, 0.0), 255.0)
    return y

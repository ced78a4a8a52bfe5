# SPDX-License-Identifier: Apache-2.0
"""From accumulators to results: the integer semantics of docs/architecture.md, on a GPU.

Whoever launches a kernel that uses this passes enable_fp_fusion=False: product and sum are rounded
one after the other, as everywhere else.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._target import target


class Output(NamedTuple):
    """dtype of y; for uint8 its scale and zero point."""

    dtype: torch.dtype
    scale: float = 1.0
    zero_point: int = 0

    @property
    def codes(self) -> int:
        """The kernels' argument CODES: 0 for floats, 2 where PTX rounds codes, else 1."""
        return (2 if target().ptx else 1) if self.dtype == torch.uint8 else 0


@triton.jit
def finish(acc, scale, bias, inverse, zero_point, HAS_BIAS: tl.constexpr, CODES: tl.constexpr):
    """float32(acc) * scale + bias; as codes (int32, the lowest byte counts) where CODES.

    scale and bias broadcast over acc. Rounding is half to even. Bounds are whole numbers, so that
    they may be applied before; the lower one makes 0 of NaN. PTX conversions stop at 2**31 - 1,
    and what follows is unsigned; elsewhere adding 1.5 * 2**23 leaves no room for a fraction, and a
    whole number in the lowest bits.
    """
    y = acc.to(tl.float32) * scale
    if HAS_BIAS:
        y = y + bias
    if CODES == 2:
        out = tl.inline_asm_elementwise(
            "{ .reg .s32 t; cvt.rni.s32.f32 t, $1; add.s32 t, t, $2; min.u32 $0, t, 255; }",
            "=r,r,r", [tl.maximum(y * inverse, -zero_point), tl.cast(zero_point, tl.int32)],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    elif CODES == 1:
        y = tl.minimum(tl.maximum(y * inverse, -zero_point), 255.0 - zero_point)
        out = (y + 12582912.0).to(tl.int32, bitcast=True) + tl.cast(zero_point, tl.int32)
    else:
        out = y
    return out

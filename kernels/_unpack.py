# SPDX-License-Identifier: Apache-2.0
"""From packed 2-bit codes to operands of matrix instructions: one shift and one AND a register.

Codes are two's complement: 00 is 0, 01 is +1, 11 is -1. In the two highest bits of a lane, the rest
cleared, such a code *is* a number: 0x40 and 0xC0 are +-64 as int8, 0x4000 and 0xC000 are +-2.0 as
float16 and as bfloat16. The factor goes into the scale of the weights.

A lane of packed weights therefore holds one weight in each of its 2-bit planes, plane 0 on top;
plane j of lane t stands for the weight at depth

    tile * depth + j * LANES + t        LANES = depth / planes, t < LANES

    int8 lanes       4 planes of 64 lanes    \\  a tile of DEPTH = 256 weights is 64 bytes
    16-bit lanes     8 planes of 32 lanes    /   either way
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

DEPTH = 256
FACTOR16 = 1 / 2  # of what 16-bit planes give; sums of 8-bit planes are shifted by 6


@triton.jit
def plane8(v, j: tl.constexpr, PTX: tl.constexpr):
    """Plane j of int8 lanes as int8, 64 times the weights."""
    if not PTX:
        return (v << (2 * j)) & -64
    if j == 0:
        return tl.inline_asm_elementwise(
            "and.b32 $0, $1, 0xC0C0C0C0;", "=r,r", [v], dtype=tl.int8, is_pure=True, pack=4
        )
    if j == 1:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $1, 2; and.b32 $0, t, 0xC0C0C0C0; }",
            "=r,r", [v], dtype=tl.int8, is_pure=True, pack=4,
        )  # fmt: skip
    if j == 2:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xC0C0C0C0; }",
            "=r,r", [v], dtype=tl.int8, is_pure=True, pack=4,
        )  # fmt: skip
    return tl.inline_asm_elementwise(
        "{ .reg .b32 t; shl.b32 t, $1, 6; and.b32 $0, t, 0xC0C0C0C0; }",
        "=r,r", [v], dtype=tl.int8, is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def plane16(v, j: tl.constexpr, PTX: tl.constexpr):
    """Plane j of int16 lanes as int16: the bits of 2.0 times the weights, float16 or bfloat16."""
    if not PTX:
        return (v << (2 * j)) & -16384
    if j == 0:
        return tl.inline_asm_elementwise(
            "and.b32 $0, $1, 0xC000C000;", "=r,r", [v], dtype=tl.int16, is_pure=True, pack=2
        )
    if j == 1:
        return _shifted16(v, "{ .reg .b32 t; shl.b32 t, $1, 2; and.b32 $0, t, 0xC000C000; }")
    if j == 2:
        return _shifted16(v, "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xC000C000; }")
    if j == 3:
        return _shifted16(v, "{ .reg .b32 t; shl.b32 t, $1, 6; and.b32 $0, t, 0xC000C000; }")
    if j == 4:
        return _shifted16(v, "{ .reg .b32 t; shl.b32 t, $1, 8; and.b32 $0, t, 0xC000C000; }")
    if j == 5:
        return _shifted16(v, "{ .reg .b32 t; shl.b32 t, $1, 10; and.b32 $0, t, 0xC000C000; }")
    if j == 6:
        return _shifted16(v, "{ .reg .b32 t; shl.b32 t, $1, 12; and.b32 $0, t, 0xC000C000; }")
    return _shifted16(v, "{ .reg .b32 t; shl.b32 t, $1, 14; and.b32 $0, t, 0xC000C000; }")


@triton.jit
def _shifted16(v, ASM: tl.constexpr):
    return tl.inline_asm_elementwise(ASM, "=r,r", [v], dtype=tl.int16, is_pure=True, pack=2)


def pack_planes(values: Tensor, lane: torch.dtype, depth: int = DEPTH) -> Tensor:
    """int8 weights in {-1, 0, 1} [..., K], K a multiple of depth -> lanes [..., K * 2 / bits]."""
    planes = torch.iinfo(lane).bits // 2
    codes = (values & 3).to(torch.int32).unflatten(-1, (-1, planes, depth // planes))
    shifts = torch.arange(planes - 1, -1, -1, device=values.device, dtype=torch.int32) * 2
    words = (codes << shifts[:, None]).sum(-2, dtype=torch.int32)  # wraps into the lane's sign
    return words.to(lane).flatten(-2)

# SPDX-License-Identifier: Apache-2.0
"""y [M, N] = x [M, K] @ W [N, K].T for integer weights W, ternary or 8-bit.

Weights lie as rows of lanes (`prepack`): ternary ones in 2-bit planes (_unpack.py), 64 bytes for
256 weights; 8-bit ones as they are. Rows are padded to ROWS, depths to DEPTH, with zeros, so that
no load of weights needs a mask.

    M = 1, int8 x    _matvec: a warp takes BN rows; dp4a on 32-bit words, 16-byte loads
    else             _matmul: a block takes BN rows of W and BM rows of x, W on the left: on Hopper
                     it comes from registers, and nowhere is a plane extracted twice

            x.T  [K, M]                     K is walked in tiles of 256: one load of packed weights,
          +------+                          then a product for each plane
          | BM   |  rows of x: tile*256 + j*LANES + t
    W     +------+
    +----+|      |
    | BN ||  acc |   [BN, BM] int32 or float32
    +----++------+

Small M leaves most of the machine idle: the depth is split among SPLIT blocks, whose sums _combine
adds in order. Quantized x is int8, 128 less than its codes (`quantize_rows` makes it); what that
shifts, the sums of the weights' rows take back.
"""

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._block_sizes import linear_blocks
from ternary_ops.kernels._epilogue import Output, finish
from ternary_ops.kernels._target import check_compiler, target
from ternary_ops.kernels._unpack import DEPTH, FACTOR16, pack_planes, plane8, plane16
from torch import Tensor

ROWS = 256  # W's rows are padded to a multiple
_TERNARY, _INT8 = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def _quantize(x, q, K, inverse, zero_point, WIDTH: tl.constexpr, CODES: tl.constexpr):
    """A row of x [M, K] to int8 [M, WIDTH]: codes less 128; CODES: x holds codes already."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * 1024 + tl.arange(0, 1024)
    v = tl.load(x + row * K + k, mask=k < K, other=0).to(tl.float32)
    if not CODES:
        v = tl.minimum(tl.maximum(v * inverse, -1024.0), 1024.0)
        v = (v + 12582912.0) - 12582912.0
        v = tl.minimum(tl.maximum(v + zero_point, 0.0), 255.0)
        v = tl.where(v == v, v, 0.0)  # NaN becomes code 0
    tl.store(q + row * WIDTH + k, (v - 128.0).to(tl.int8), mask=k < WIDTH)


@triton.jit
def _matvec(
    w, x, y, sums, scale, bias, N, shift, inverse, zero_point,
    WORDS: tl.constexpr, TERNARY: tl.constexpr, HAS_BIAS: tl.constexpr, CODES: tl.constexpr,
    BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """One row of x. w int32 words [rows, WORDS], x int32 words of four int8."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    i = tl.arange(0, BW)
    acc = tl.zeros((BN, BW), tl.int32)
    rows = w + n.to(tl.int64)[:, None] * WORDS
    for first in tl.range(0, WORDS, BW):
        at = first + i
        v = tl.load(rows + at[None, :], mask=at[None, :] < WORDS, other=0)
        if TERNARY:
            # Word `at` holds a plane's words at (at / 16) * 64 + at % 16, planes 16 words apart.
            base = (at // 16) * 64 + at % 16
            for j in tl.static_range(4):
                xj = tl.load(x + base + 16 * j, mask=at < WORDS, other=0)
                plane = (v << (2 * j)) & -1061109568  # 0xC0 in every byte
                acc = tl.inline_asm_elementwise(
                    "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r",
                    [plane, xj[None, :], acc], dtype=tl.int32, is_pure=True, pack=1,
                )  # fmt: skip
        else:
            xj = tl.load(x + at, mask=at < WORDS, other=0)
            acc = tl.inline_asm_elementwise(
                "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r",
                [v, xj[None, :], acc], dtype=tl.int32, is_pure=True, pack=1,
            )  # fmt: skip
    total = tl.sum(acc, 1)
    if TERNARY:
        total = total >> 6
    inside = n < N
    total += tl.load(sums + n) * shift
    b = tl.load(bias + n, mask=inside, other=0.0) if HAS_BIAS else 0.0
    s = tl.load(scale + n, mask=inside, other=0.0)
    out = finish(total, s, b, inverse, zero_point, HAS_BIAS, CODES)
    tl.store(y + n, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _matmul(
    w, x, y, sums, scale, bias, M, N, shift, inverse, zero_point, factor,
    K: tl.constexpr, TERNARY: tl.constexpr, INTEGER: tl.constexpr, HAS_BIAS: tl.constexpr,
    CODES: tl.constexpr, PTX: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x [M, K] int8 (INTEGER) or float; K a multiple of 256. With SPLIT > 1 y is [SPLIT, M, N] of
    accumulators.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    part = tl.program_id(2)
    PLANES: tl.constexpr = 1 if not TERNARY else (4 if INTEGER else 8)
    LANES: tl.constexpr = 256 // PLANES if TERNARY else 64
    STEP: tl.constexpr = 256 if TERNARY else 64
    t = tl.arange(0, LANES)
    columns = x + tl.minimum(m, M - 1).to(tl.int64)[None, :] * K
    rows = w + n.to(tl.int64)[:, None] * (K // PLANES)
    acc = tl.zeros((BN, BM), tl.int32 if INTEGER else tl.float32)
    for tile in tl.range(part, K // STEP, SPLIT):
        v = tl.load(rows + (tile * LANES + t)[None, :])
        for j in tl.static_range(PLANES):
            xj = tl.load(columns + (tile * STEP + j * LANES + t)[:, None])
            if INTEGER:
                if TERNARY:
                    acc = tl.dot(plane8(v, j, PTX), xj, acc, out_dtype=tl.int32)
                else:
                    acc = tl.dot(v, xj, acc, out_dtype=tl.int32)
            else:
                if TERNARY:
                    bits = plane16(v, j, PTX)
                    if xj.dtype == tl.float32:
                        wj = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
                    else:
                        wj = bits.to(xj.dtype, bitcast=True)
                else:
                    wj = v.to(xj.dtype)
                acc = tl.dot(wj, xj, acc, input_precision="ieee")
    inside = (m < M)[None, :] & (n < N)[:, None]
    cell = m.to(tl.int64)[None, :] * N + n[:, None]
    if SPLIT > 1:
        tl.store(y + part.to(tl.int64) * M * N + cell, acc, mask=inside)
    else:
        if INTEGER:
            if TERNARY:
                acc = acc >> 6
            acc += (tl.load(sums + n) * shift)[:, None]
        else:
            acc = acc * factor
        b = tl.load(bias + n, mask=n < N, other=0.0)[:, None] if HAS_BIAS else 0.0
        s = tl.load(scale + n, mask=n < N, other=0.0)[:, None]
        out = finish(acc, s, b, inverse, zero_point, HAS_BIAS, CODES)
        tl.store(y + cell, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _combine(
    parts, y, sums, scale, bias, M, N, shift, inverse, zero_point, factor,
    TERNARY: tl.constexpr, INTEGER: tl.constexpr, HAS_BIAS: tl.constexpr, CODES: tl.constexpr,
    SPLIT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Adds the SPLIT accumulators of one row, in order, and finishes it."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = n < N
    acc = tl.load(parts + row * N + n, mask=inside, other=0)
    for part in tl.static_range(1, SPLIT):
        acc += tl.load(parts + (part * M + row) * N + n, mask=inside, other=0)
    if INTEGER:
        if TERNARY:
            acc = acc >> 6
        acc += tl.load(sums + n, mask=inside, other=0) * shift
    else:
        acc = acc * factor
    b = tl.load(bias + n, mask=inside, other=0.0) if HAS_BIAS else 0.0
    s = tl.load(scale + n, mask=inside, other=0.0)
    out = finish(acc, s, b, inverse, zero_point, HAS_BIAS, CODES)
    tl.store(y + row * N + n, out.to(y.dtype.element_ty), mask=inside)


def prepack(values: Tensor, ternary: bool, float_x: bool) -> Tensor:
    """int8 weights [N, K] as the kernels read them, uint8 [bytes]: rows, then their sums int32."""
    n, k = values.shape
    wide = torch.nn.functional.pad(values, (0, -k % DEPTH, 0, -n % ROWS))
    rows = pack_planes(wide, torch.int16 if float_x else torch.int8) if ternary else wide
    sums = wide.sum(1, dtype=torch.int32)
    parts = [rows.contiguous().view(torch.uint8).flatten(), sums.view(torch.uint8)]
    return torch.cat(parts)


def packed_bytes(n: int, k: int, ternary: bool) -> int:
    """Length of what prepack returns."""
    rows, depth = -(-n // ROWS) * ROWS, -(-k // DEPTH) * DEPTH
    return rows * depth // (4 if ternary else 1) + 4 * rows


def quantize_rows(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """x [M, K], float or codes uint8, as int8 [M, K padded to DEPTH], 128 less than the codes."""
    m, k = x.shape
    width = -(-k // DEPTH) * DEPTH
    q = torch.empty(m, width, dtype=torch.int8, device=x.device)
    codes = x.dtype == torch.uint8
    inverse = float(torch.tensor(1.0) / torch.tensor(scale))
    grid = (m, triton.cdiv(width, 1024))
    _quantize[grid](
        x, q, k, inverse, float(zero_point), width, codes, num_warps=1, enable_fp_fusion=False
    )
    return q


def run(
    x: Tensor,
    packed: Tensor,
    n: int,
    ternary: bool,
    scale: Tensor,
    bias: Tensor | None,
    quantized: tuple[float, int] | None,
    output: Output,
) -> Tensor:
    """x [M, K] contiguous, float or uint8; packed of `prepack`; y [M, n].

    quantized: scale and zero point of uint8 x, or those a float x is to be quantized with; scale
    [N] float32 holds the factor of x's already.
    """
    m, k = x.shape
    depth, rows = -(-k // DEPTH) * DEPTH, -(-n // ROWS) * ROWS
    integer = quantized is not None
    bytes_ = rows * depth // 4 if ternary else rows * depth
    w, sums = packed[:bytes_], packed[bytes_:].view(torch.int32)
    shift = 0
    if quantized is not None:
        x, shift = quantize_rows(x, *quantized), 128 - quantized[1]
    elif depth != k:
        x = torch.nn.functional.pad(x, (0, depth - k))
    y = torch.empty(m, n, dtype=output.dtype, device=x.device)
    inverse = float(torch.tensor(1.0) / torch.tensor(output.scale))
    finish_with = (shift, inverse, float(output.zero_point))
    flags = {"HAS_BIAS": bias is not None, "CODES": output.codes}
    where = target()
    blocks = linear_blocks(m, n, depth, x.element_size(), where)
    check_compiler(integer, where)
    vectors = (sums, scale, scale if bias is None else bias)
    if integer and m == 1 and where.ptx:
        words = w.view(torch.int32)
        _matvec[(triton.cdiv(n, blocks.rows),)](
            words, x.view(torch.int32), y, *vectors, n, *finish_with,
            WORDS=bytes_ // rows // 4, TERNARY=ternary, **flags, BN=blocks.rows, BW=128,
            num_warps=blocks.warps, enable_fp_fusion=False,
        )  # fmt: skip
        return y
    lanes = w.view(torch.int16) if ternary and not integer else w.view(torch.int8)
    split = blocks.split
    kept = torch.int32 if integer else torch.float32
    parts = y if split == 1 else torch.empty(split, m, n, dtype=kept, device=x.device)
    factor = FACTOR16 if ternary and not integer else 1.0
    grid = (triton.cdiv(n, blocks.rows), triton.cdiv(m, blocks.columns), split)
    kind = {"TERNARY": ternary, "INTEGER": integer}
    _matmul[grid](
        lanes, x, parts, *vectors, m, n, *finish_with, factor, K=depth, **kind, **flags,
        PTX=where.ptx, SPLIT=split, BM=blocks.columns, BN=blocks.rows,
        num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=False,
    )  # fmt: skip
    if split > 1:
        _combine[(m, triton.cdiv(n, 512))](
            parts, y, *vectors, m, n, *finish_with, factor, **kind, **flags,
            SPLIT=split, BN=512, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return y

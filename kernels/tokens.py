# SPDX-License-Identifier: Apache-2.0
"""Token networks: attention whose scores never reach memory, and LayerNorm that makes codes.

attention, softmax(scale * q k + bias) v of one head a program:

             k.T  [K, M]     keys in blocks of BN: a product makes scores [BM, BN], whose largest so
          +----+----+--      far, sum of exponentials and weighted values are kept in registers and
    q  BM |    |    |        scaled anew where a block has a larger one (FlashAttention, arXiv
          +----+----+--      2205.14135); one division at the end

    Products are those of q's dtype with float32 sums, float32 ones are not rounded to tf32; shares
    are rounded to q's dtype for the second product. Traffic: q and y once, keys and values once a
    block of queries.

layer_norm_codes: a program holds ROWS tokens whole, reads each once and writes a byte a channel.
"""

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._epilogue import Output, finish
from ternary_ops.kernels._target import check_compiler, target
from torch import Tensor

_LOG2E = 1.4426950408889634


@triton.jit
def _attention(
    q, k, v, bias, y, queries, keys, heads, scale, K: tl.constexpr, D: tl.constexpr,
    KP: tl.constexpr, DP: tl.constexpr, HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q [NH, L, K], k [NH, M, K], v [NH, M, D], bias [H, L, M] in units of log 2, as scale is."""
    head = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    c, d, j = tl.arange(0, KP), tl.arange(0, DP), tl.arange(0, BN)
    row = (m < queries)[:, None]
    own_at = (head * queries + m[:, None]) * K + c[None, :]
    own = tl.load(q + own_at, mask=row & (c < K)[None, :], other=0.0)
    most = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, DP), tl.float32)
    for first in tl.range(0, keys, BN, num_stages=1):
        n = first + j
        inside = n < keys
        key_at = (head * keys + n[None, :]) * K + c[:, None]
        theirs = tl.load(k + key_at, mask=inside[None, :] & (c < K)[:, None], other=0.0)
        score = tl.dot(own, theirs, input_precision="ieee") * scale
        if HAS_BIAS:
            score_at = ((head % heads) * queries + m[:, None]) * keys + n[None, :]
            score += tl.load(bias + score_at, mask=row & inside[None, :], other=0.0)
        score = tl.where(inside[None, :], score, float("-inf"))
        larger = tl.maximum(most, tl.max(score, 1))
        share = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(most - larger)
        total = total * shrink + tl.sum(share, 1)
        value_at = (head * keys + n[:, None]) * D + d[None, :]
        value = tl.load(v + value_at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        acc = acc * shrink[:, None]
        acc = tl.dot(share.to(value.dtype), value, acc, input_precision="ieee")
        most = larger
    y_at = (head * queries + m[:, None]) * D + d[None, :]
    out = acc / total[:, None]
    tl.store(y + y_at, out.to(y.dtype.element_ty), mask=row & (d < D)[None, :])


@triton.jit
def _layer_norm(
    x, weight, bias, y, rows, eps, inverse, zero_point, C: tl.constexpr, CP: tl.constexpr,
    HAS_BIAS: tl.constexpr, CODES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """x [rows, C] to uint8."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CP)
    inside = (row < rows)[:, None] & (c < C)[None, :]
    at = row.to(tl.int64)[:, None] * C + c[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    off = tl.where(inside, v - (tl.sum(v, 1) / C)[:, None], 0.0)
    factor = 1.0 / tl.sqrt_rn(tl.sum(off * off, 1) / C + eps)
    w = tl.load(weight + c, mask=c < C, other=0.0)[None, :]
    b = tl.load(bias + c, mask=c < C, other=0.0)[None, :] if HAS_BIAS else 0.0
    out = finish(off * factor[:, None], w, b, inverse, zero_point, HAS_BIAS, CODES)
    tl.store(y + at, out.to(tl.uint8), mask=inside)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """[N, H, L, K], [N, H, M, K], [N, H, M, D], bias [H, L, M] or none, contiguous, none empty."""
    check_compiler(False, target())
    n, heads, queries, width = q.shape
    keys, depth = k.shape[2], v.shape[3]
    y = torch.empty(n, heads, queries, depth, dtype=q.dtype, device=q.device)
    wide = q.element_size() == 4
    rows = 16 if queries <= 16 else 32 if wide or target().backend == "hip" else 64
    # Narrow heads leave registers for more keys; with fewer the compiler spills.
    block = 32 if wide else 128 if width <= 32 else 64
    added = y if bias is None else (bias.float() * _LOG2E).contiguous()
    _attention[(triton.cdiv(queries, rows), n * heads)](
        q, k, v, added, y, queries, keys, heads, scale * _LOG2E, K=width, D=depth,
        KP=max(16, triton.next_power_of_2(width)), DP=max(16, triton.next_power_of_2(depth)),
        HAS_BIAS=bias is not None, BM=rows, BN=block, num_warps=4,
    )  # fmt: skip
    return y


def layer_norm_codes(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, output: Output
) -> Tensor:
    """x [rows, C] contiguous, not empty; weight and bias float32 [C]."""
    rows, channels = x.shape
    y = torch.empty(rows, channels, dtype=torch.uint8, device=x.device)
    padded = triton.next_power_of_2(channels)
    each = max(1, 2048 // padded)
    _layer_norm[(triton.cdiv(rows, each),)](
        x, weight, weight if bias is None else bias, y, rows, eps,
        float(1 / torch.tensor(output.scale, dtype=torch.float32)), float(output.zero_point),
        C=channels, CP=padded, HAS_BIAS=bias is not None, CODES=output.codes, ROWS=each,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return y

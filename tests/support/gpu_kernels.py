# SPDX-License-Identifier: Apache-2.0
"""Small Triton kernels of known shape, for test_gpu_static.py. Triton reads their source file."""

from __future__ import annotations

import triton  # noqa: TID251
import triton.language as tl  # noqa: TID251


@triton.jit
def copy_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    """Each program copies SIZE numbers."""
    spot = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y_ptr + spot, tl.load(x_ptr + spot))


@triton.jit
def matmul_kernel(x_ptr, w_ptr, y_ptr, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y [M, N] = x [M, K] @ w [K, N], one tile a program, no masks."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x = x_ptr + m[:, None] * K + k[None, :]
    w = w_ptr + k[:, None] * N + n[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, K, BK):
        total = tl.dot(tl.load(x), tl.load(w), total)
        x += BK
        w += BK * N
    tl.store(y_ptr + m[:, None] * N + n[None, :], total.to(y_ptr.dtype.element_ty))


@triton.jit
def repeat_kernel(x_ptr, y_ptr, turns, SIZE: tl.constexpr):
    """exp2 of minus x, again and again: one loop whose count is not known when it is compiled."""
    spot = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x_ptr + spot)
    for _ in tl.range(turns, num_stages=1, loop_unroll_factor=1):
        value = tl.exp2(-value)
    tl.store(y_ptr + spot, value)


@triton.autotune(
    configs=[triton.Config({"SIZE": size}, num_warps=4) for size in (1024, 512, 4096)], key=[]
)
@triton.jit
def tuned_copy_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    """copy_kernel with a choice."""
    spot = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y_ptr + spot, tl.load(x_ptr + spot))

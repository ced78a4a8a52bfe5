# SPDX-License-Identifier: Apache-2.0
"""x * (sigmoid(gate + stretched low) - offset) + residual in one pass over the maps.

    program (plane, rows)      a plane of [N * C, H, W]; BLOCK pixels of it, in their order
    low [planes, h, w]         four reads a pixel, which neighbors share: it stays in the L1 cache

Bytes a pixel: x and gate read, y written, in x's dtype; sums in float32, rounded once.
"""

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._bilinear import between
from torch import Tensor

BLOCK = 1024


@triton.jit
def _gate(
    x, gate, low, residual, y, pixels, width, cells_h, cells_w, tall, wide, top, left, offset,
    LOW: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < pixels
    at = plane * pixels + p
    s = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    if LOW:
        above, below, down = between(p // width + top, cells_h, tall)
        near, far, right = between(p % width + left, cells_w, wide)
        map_ = low + plane * cells_h * cells_w
        a = tl.load(map_ + above * cells_w + near, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(map_ + above * cells_w + far, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(map_ + below * cells_w + near, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(map_ + below * cells_w + far, mask=inside, other=0.0).to(tl.float32)
        s += (1.0 - down) * ((1.0 - right) * a + right * b) + down * ((1.0 - right) * c + right * d)
    out = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * (tl.sigmoid(s) - offset)
    if RESIDUAL:
        out += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


def run(
    x: Tensor,
    gate: Tensor,
    low: Tensor | None,
    residual: Tensor | None,
    offset: float,
    image: tuple[int, int],
    origin: tuple[int, int],
) -> Tensor:
    """All [N, C, H, W] contiguous, not empty, low [N, C, h, w]; see ternary_ops.ops.sr_gate."""
    n, c, h, w = x.shape
    y = torch.empty_like(x)
    cells = (1, 1) if low is None else (low.shape[2], low.shape[3])
    tall, wide = (
        float(torch.tensor(small, dtype=torch.float32) / whole)
        for small, whole in zip(cells, image, strict=True)
    )
    grid = (triton.cdiv(h * w, BLOCK), n * c)
    _gate[grid](
        x, gate, x if low is None else low, x if residual is None else residual, y, h * w, w,
        *cells, tall, wide, *origin, offset,
        LOW=low is not None, RESIDUAL=residual is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return y

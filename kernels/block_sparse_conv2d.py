# SPDX-License-Identifier: Apache-2.0
"""2-d convolution with float weights in blocks of N output x M input channels at one tap.

values [nnz, N, M], crow_indices and col_indices as ternary_ops/bsr.py defines them; x as a
map of pixels (_im2col.py) whose channels are padded to whole blocks, so that a column index, times
the constant M, is the place of what it multiplies:

    a row of blocks  crow[b] .. crow[b + 1]         map
    +-----+     +-----+     +-----+               +------+  one block's M channels of BM pixels,
  N |     | ... |     | ... |     |               |      |  found through col[e]
    +-----+     +-----+     +-----+               +------+
       M                                             BM

A program takes BN rows of a row of blocks and walks its list, DEPTH channels a product, without
masks. Blocks go to tensor cores as they lie where N and M are multiples of 16 and a row of blocks
belongs to one group. Any others are spread over a dense weight first, which conv2d's kernels take:
tiles of less than 16 x 16 would mostly multiply padding.
"""

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._block_sizes import block_sparse_blocks
from ternary_ops.kernels._epilogue import Output
from ternary_ops.kernels._im2col import (
    NONE,
    Layout,
    Window,
    arrange,
    make_layout,
    make_map,
    on_tensor_cores,
)
from ternary_ops.kernels._implicit_gemm import (
    Finishing,
    accumulate,
    columns_of,
    constants,
    geometry,
    pieces,
    place,
    write,
)
from ternary_ops.kernels._target import check_compiler, target
from torch import Tensor

from ternary_ops.bsr import Blocks, to_dense
from ternary_ops.kernels import conv2d


@triton.jit
def _block_sparse(
    values, crow, col, x, y, bias, images, OUT, HM, WM, hw, by_hw, hw_places, WO, by_wo, wo_places,
    down, right, down_tap,
    RIGHT: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr,
    GROUPS: tl.constexpr, EVEN: tl.constexpr, FAR: tl.constexpr, HAS_BIAS: tl.constexpr,
    N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """LANES: M, a block's input channels; CHUNKS: blocks of a group's channels."""
    PIXEL: tl.constexpr = GROUPS * CHUNKS * LANES
    HW = hw * EVEN
    P = images * HW
    parts = tl.cdiv(GROUPS * OUT, N) * (N // BN)
    part = tl.program_id(0) % parts
    n = part % (N // BN) * BN + tl.arange(0, BN)
    block_row = part // (N // BN)
    group = block_row * N // OUT
    o = block_row * N - group * OUT + n
    p = tl.program_id(0) // parts * BM + tl.arange(0, BM)
    t = tl.arange(0, DEPTH)
    starts = columns_of(
        x, tl.minimum(p, P - 1), HM, WM, HW, WO, by_hw, hw_places, by_wo, wo_places, down, right,
        PIXEL,
    )  # fmt: skip
    columns = starts[None, :] + (group * (CHUNKS * LANES) + t)[:, None]
    rows = values + (n * LANES)[:, None] + t[None, :]
    acc = tl.zeros((BN, BM), tl.float32)
    for entry in tl.range(tl.load(crow + block_row), tl.load(crow + block_row + 1)):
        weights = rows + tl.cast(entry, tl.int64) * (N * LANES)
        q = tl.load(col + entry)
        inputs = columns + place(q, down_tap, RIGHT, WIDTH, CHUNKS, LANES, PIXEL)
        for j in tl.static_range(LANES // DEPTH):
            v = tl.load(weights + j * DEPTH)
            acc = accumulate(acc, v, tl.load(inputs + j * DEPTH), 0, False, False)
    write(
        y, acc, p, o, group, P, HW, by_hw, hw_places, OUT,
        None, None, bias, 0, 1.0, 0.0, 1.0,
        GROUPS, 0, EVEN, FAR, False, HAS_BIAS, False,
    )  # fmt: skip


def run(
    x: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    out_channels: int,
    kernel_size: tuple[int, int],
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """x [N, C, H, W] contiguous float; y [N, O, Ho, Wo] of its dtype, summed in float32.

    Values of another dtype than x's: both become float32, and miss the tensor cores.
    """
    window = Window(stride, padding, dilation, groups)
    check_compiler(False, target())
    size = window.size((x.shape[2], x.shape[3]), kernel_size)
    y = torch.empty(x.shape[0], out_channels, *size, dtype=x.dtype, device=x.device)
    dtype = torch.promote_types(x.dtype, values.dtype)
    x, values = x.to(dtype), values.to(dtype).contiguous()
    blocks = Blocks(values, crow_indices, col_indices)
    n, m = values.shape[1:]
    whole_rows = groups == 1 or out_channels // groups % n == 0
    multiply = _multiply if n % 16 == m % 16 == 0 and whole_rows else _multiply_dense
    for part, to in pieces(x, y):
        multiply(part, blocks, kernel_size, window, bias, to)
    return y


def _multiply(
    x: Tensor,
    blocks: Blocks,
    kernel: tuple[int, int],
    window: Window,
    bias: Tensor | None,
    y: Tensor,
) -> None:
    """Fills y, blocks as they are."""
    values, crow, col = blocks
    n, m = values.shape[1:]
    groups, where = window.groups, target()
    channels = x.shape[1] // groups
    sides = block_sparse_blocks(y.numel() // y.shape[1], n, m, y.shape[1], x.element_size(), where)
    # The map is made and walked in units of what is a power of two, or of blocks.
    inner = -(-channels // m)
    unit = Layout(NONE, kernel, sides.depth, inner * m // sides.depth, n)
    image = make_map(x, unit, kernel, window, 0)
    parts = -(-y.shape[1] // n) * (n // sides.rows)
    pixels = y.numel() // y.shape[1]
    _block_sparse[(triton.cdiv(pixels, sides.columns) * parts,)](
        values, crow, col, image.values, y, values if bias is None else bias,
        *geometry(image, y, groups),
        **constants(image, unit._replace(lanes=m, chunks=inner), y, groups),
        HAS_BIAS=bias is not None, N=n, BM=sides.columns, BN=sides.rows, DEPTH=sides.depth,
        num_warps=sides.warps, num_stages=sides.stages, enable_fp_fusion=False,
    )  # fmt: skip


def _multiply_dense(
    x: Tensor,
    blocks: Blocks,
    kernel: tuple[int, int],
    window: Window,
    bias: Tensor | None,
    y: Tensor,
) -> None:
    """Fills y, by way of a dense weight."""
    channels, out_channels = x.shape[1] // window.groups, y.shape[1]
    dense = to_dense(blocks, out_channels, channels, kernel).to(x.dtype).contiguous()
    ones = torch.ones(out_channels, device=x.device)
    finishing, shape = Finishing(ones, bias, Output(y.dtype)), (out_channels, *kernel, channels)
    if not on_tensor_cores(out_channels, channels, window.groups):
        conv2d.run_grouped(x, dense, shape, window, 0, finishing, y)
        return
    layout = make_layout(shape, window.groups, 2)
    rows = arrange(dense, layout, window.groups).contiguous()
    weights = conv2d.Weights(rows, ones, False)
    conv2d.multiply(x, weights, layout, kernel, window, 0, finishing, y)

# SPDX-License-Identifier: Apache-2.0
"""2-d convolution with ternary or 8-bit weights that leaves out what is empty.

As conv2d.py, on the same map, but a block of rows of weights walks a list of its own: the chunks
(a tap, and 32 or 64 bytes of its channels) at which any of its rows holds a weight. A chunk that is
kept is multiplied whole, with dense 2-bit weights.

    rows of W, a block of BN                 of the chunks of a filter, here 9,
    +---+---+---+---+---+---+---+---+---+    this block keeps 5; with 3 chunks a step it takes
    |   | x | x |   |   | x | x |   | x |    two steps:  1 2 5 | 6 8 1
    +---+---+---+---+---+---+---+---+---+    the last step filled up with zero weights

    first   [blocks + 1]      int32: the steps of block b are first[b] .. first[b + 1]
    chunks  [steps, USED]     int32: places in units of a chunk, so that the address of what they
                              name is seen to be a multiple of 16 bytes
    tiles   [steps, BN, ...]  weights, in planes or as int8

A zero weight within a kept chunk multiplies: an infinity under it becomes NaN, as in conv2d.
"""

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._block_sizes import conv_blocks
from ternary_ops.kernels._epilogue import Output
from ternary_ops.kernels._im2col import (
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
from ternary_ops.kernels._unpack import FACTOR16
from torch import Tensor

from ternary_ops.kernels import conv2d

_USED = 4  # chunks of a step, at most: planes of an int8 lane


@triton.jit
def _sparse(
    tiles, chunks, first, x, y, sums, scale, bias, images, OUT, HM, WM, hw, by_hw, hw_places, WO,
    by_wo, wo_places, down, right, down_tap, shift, inverse, zero_point, factor,
    RIGHT: tl.constexpr, USED: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
    LANES: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr,
    FAR: tl.constexpr, TERNARY: tl.constexpr, HAS_BIAS: tl.constexpr, CODES: tl.constexpr,
    PTX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    PIXEL: tl.constexpr = GROUPS * CHUNKS * LANES
    HELD: tl.constexpr = LANES if TERNARY else USED * LANES
    HW = hw * EVEN
    P = images * HW
    part = tl.program_id(0) % (GROUPS * ROWS // BN)
    group = part // (ROWS // BN)
    n = tl.arange(0, BN)
    o = part % (ROWS // BN) * BN + n
    p = tl.program_id(0) // (GROUPS * ROWS // BN) * BM + tl.arange(0, BM)
    t = tl.arange(0, LANES)
    starts = columns_of(
        x, tl.minimum(p, P - 1), HM, WM, HW, WO, by_hw, hw_places, by_wo, wo_places, down, right,
        PIXEL,
    )  # fmt: skip
    columns = starts[None, :] + (group * (CHUNKS * LANES) + t)[:, None]
    rows = tiles + (n * HELD)[:, None] + t[None, :]
    kept: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((BN, BM), kept)
    for step in tl.range(tl.load(first + part), tl.load(first + part + 1)):
        weights = rows + tl.cast(step, tl.int64) * (BN * HELD)
        v = tl.load(weights)
        for j in tl.static_range(USED):
            if not TERNARY and j > 0:
                v = tl.load(weights + j * LANES)
            q = tl.load(chunks + step * USED + j)
            far = place(q, down_tap, RIGHT, WIDTH, CHUNKS, LANES, PIXEL)
            acc = accumulate(acc, v, tl.load(columns + far), j, TERNARY, PTX)
    write(
        y, acc, p, o, group, P, HW, by_hw, hw_places, OUT,
        sums, scale, bias, shift, inverse, zero_point, factor,
        GROUPS, ROWS, EVEN, FAR, TERNARY, HAS_BIAS, CODES,
    )  # fmt: skip


def _block_rows(layout: Layout) -> int:
    return min(layout.rows, 64)


def prepack(values: Tensor, groups: int, ternary: bool, float_x: bool) -> Tensor:
    """int8 weights [O, R, S, C / groups]: tiles, chunks, first, then the rows' sums; uint8."""
    o, r, s, channels = values.shape
    if not on_tensor_cores(o, channels, groups):
        return conv2d.prepack(values, groups, ternary, float_x)
    layout = make_layout((o, r, s, channels), groups, 2 if float_x else 1)
    wide = arrange(values, layout, groups)
    sums = wide.sum((1, 2), dtype=torch.int32)
    rows, used = _block_rows(layout), conv2d.chunks_used(layout, _USED)
    blocks = wide.unflatten(0, (-1, rows))  # [blocks, rows, chunks, lanes]
    kept = (blocks != 0).any(3).any(1)
    steps = (kept.sum(1) + used - 1) // used
    first = torch.nn.functional.pad(steps.cumsum(0), (1, 0)).to(torch.int32)
    owner, chunk = kept.nonzero(as_tuple=True)
    slot = first[owner] * used + kept.cumsum(1)[kept] - 1
    count = int(first[-1]) * used
    # What fills up a step names a chunk of its own block: another could hold an infinity.
    chunks = kept.int().argmax(1).repeat_interleave(steps * used, output_size=count)
    chunks[slot] = chunk
    tiles = values.new_zeros(count, rows, layout.lanes)
    tiles[slot] = blocks[owner, :, chunk]
    tiles = tiles.unflatten(0, (-1, used)).transpose(1, 2).flatten(0, 1)  # [steps * rows, used, .]
    if ternary:
        tiles = conv2d.ternary_steps(tiles, used, float_x)
    parts = (tiles, chunks.to(torch.int32), first, sums)
    return torch.cat([part.contiguous().view(torch.uint8).flatten() for part in parts])


def run(
    x: Tensor,
    packed: Tensor,
    weight_shape: tuple[int, int, int, int],
    ternary: bool,
    scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    quantized: tuple[float, int] | None,
    output: Output,
) -> Tensor:
    """What conv2d.run does, with `packed` of this file's prepack."""
    o, r, s, channels = weight_shape
    if not on_tensor_cores(o, channels, groups):
        return conv2d.run(
            x, packed, weight_shape, ternary, scale, bias, stride, padding, dilation, groups,
            quantized, output,
        )  # fmt: skip
    window = Window(stride, padding, dilation, groups)
    check_compiler(quantized is not None, target())
    size = window.size((x.shape[2], x.shape[3]), (r, s))
    y = torch.empty(x.shape[0], o, *size, dtype=output.dtype, device=x.device)
    zero_point = 0 if quantized is None else quantized[1]
    finishing = Finishing(scale, bias, output, 128 - zero_point if quantized else 0)
    layout = make_layout(weight_shape, groups, 1 if quantized else 2)
    for part, to in pieces(x, y):
        _multiply(part, packed, layout, ternary, (r, s), window, zero_point, finishing, to)
    return y


def _split(packed: Tensor, layout: Layout, groups: int, step: int) -> tuple[Tensor, ...]:
    """Tiles (bytes), chunks, first and sums; step: bytes of a step's tile."""
    used, rows = conv2d.chunks_used(layout, _USED), groups * layout.rows
    tail = 4 * (rows // _block_rows(layout) + 1) + 4 * rows
    steps = (packed.numel() - tail) // (step + 4 * used)
    tiles, numbers = packed[: steps * step], packed[steps * step :].view(torch.int32)
    return tiles, numbers[: steps * used], numbers[steps * used : -rows], numbers[-rows:]


def _multiply(
    x: Tensor,
    packed: Tensor,
    layout: Layout,
    ternary: bool,
    kernel: tuple[int, int],
    window: Window,
    zero_point: int,
    finishing: Finishing,
    y: Tensor,
) -> None:
    """Fills y."""
    where, integer, groups = target(), x.dtype == torch.uint8, window.groups
    image = make_map(x, layout, kernel, window, zero_point)
    used, rows = conv2d.chunks_used(layout, _USED), _block_rows(layout)
    lane = torch.int16 if ternary and not integer else torch.int8
    held = layout.lanes * lane.itemsize * (1 if ternary else used)
    tiles, chunks, first, sums = _split(packed, layout, groups, rows * held)
    pixels = len(x) * y.shape[2] * y.shape[3]
    itemsize = image.values.element_size()
    parts = groups * layout.rows // rows
    blocks = conv_blocks(pixels, rows, parts, used * layout.lanes, held, itemsize, where)
    factor = FACTOR16 if ternary and not integer else 1.0
    _sparse[(triton.cdiv(pixels, blocks.columns) * parts,)](
        tiles.view(lane), chunks, first, image.values, y, sums, *finishing.vectors,
        *geometry(image, y, groups), *finishing.numbers(factor),
        USED=used, ROWS=layout.rows, TERNARY=ternary, **constants(image, layout, y, groups),
        **finishing.flags, PTX=where.ptx, BM=blocks.columns, BN=rows, num_warps=blocks.warps,
        num_stages=blocks.stages, enable_fp_fusion=False,
    )  # fmt: skip

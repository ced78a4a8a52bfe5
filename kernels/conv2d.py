# SPDX-License-Identifier: Apache-2.0
"""2-d convolution with integer weights, ternary or 8-bit: an implicit matrix product.

A first kernel writes x as a map of pixels that hold their channels, padding included (_im2col.py).
The main one multiplies, with the weights on the left (on Hopper they come from registers; elsewhere
warps side by side extract a plane each) and pixels of all images and rows as columns:

                map    each column starts at its window's first pixel; a chunk's place in the
              +------+ window is the same for all of them: one offset, no masks
              | BM   |
    W         +------+
    +-----+   |      |
    | BN  |   | acc  |   [BN, BM] int32 or float32 -> y[n, o, :], rows of pixels as they lie
    +-----+   +------+

The depth is walked in steps of USED chunks, the largest divisor of their number that planes of a
lane can hold: 3 of 4 for 3x3 filters on int8. Weights (`prepack`): [groups * rows, steps, lanes],
padded with zeros; then the rows' sums.

y is written as [N, O, Ho, Wo] by the main kernel: a warp's lanes hold neighbouring pixels of a
channel, so storing them along W costs nothing, and another pass over y would.

Groups of less than 8 channels go to _grouped, without tensor cores and without a map.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._block_sizes import conv_blocks
from ternary_ops.kernels._epilogue import Output, finish
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
from ternary_ops.kernels._unpack import FACTOR16, pack_planes
from torch import Tensor


@triton.jit
def _offset(
    step, j: tl.constexpr, down, RIGHT: tl.constexpr, USED: tl.constexpr, WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr, LANES: tl.constexpr, PIXEL: tl.constexpr,
):  # fmt: skip
    """From a window's first element to chunk step * USED + j: elements, and a constant more.

    Constants go into instructions that load; divisions are only where unavoidable.
    """
    if USED % (CHUNKS * WIDTH) == 0:
        r = step * (USED // (CHUNKS * WIDTH)) + j // (CHUNKS * WIDTH)
        near = j // CHUNKS % WIDTH * RIGHT * PIXEL + j % CHUNKS * LANES
        far = r.to(tl.int64) * down * PIXEL
    elif CHUNKS % USED == 0:
        tap = step // (CHUNKS // USED)
        far = ((tap // WIDTH).to(tl.int64) * down + tap % WIDTH * RIGHT) * PIXEL
        far += step % (CHUNKS // USED) * (USED * LANES)
        near = j * LANES
    else:
        far = place(step * USED + j, down, RIGHT, WIDTH, CHUNKS, LANES, PIXEL)
        near = 0
    return far, near


@triton.jit
def _conv(
    w, x, y, sums, scale, bias, images, OUT, HM, WM, hw, by_hw, hw_places, WO, by_wo, wo_places,
    down, right, down_tap, shift, inverse, zero_point, factor,
    RIGHT: tl.constexpr, STEPS: tl.constexpr, USED: tl.constexpr, WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    EVEN: tl.constexpr, FAR: tl.constexpr, TERNARY: tl.constexpr, HAS_BIAS: tl.constexpr,
    CODES: tl.constexpr, PTX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Pixels of a result's channel: EVEN * hw, so that EVEN of them can be stored at once."""
    PIXEL: tl.constexpr = GROUPS * CHUNKS * LANES
    HW = hw * EVEN
    P = images * HW
    part = tl.program_id(0) % (GROUPS * ROWS // BN)
    group = part // (ROWS // BN)
    o = part % (ROWS // BN) * BN + tl.arange(0, BN)
    p = tl.program_id(0) // (GROUPS * ROWS // BN) * BM + tl.arange(0, BM)
    t = tl.arange(0, LANES)
    starts = columns_of(
        x, tl.minimum(p, P - 1), HM, WM, HW, WO, by_hw, hw_places, by_wo, wo_places, down, right,
        PIXEL,
    )  # fmt: skip
    columns = starts[None, :] + (group * (CHUNKS * LANES) + t)[:, None]
    held = LANES if TERNARY else USED * LANES  # weights of a step
    rows = w + (part * BN + tl.arange(0, BN)).to(tl.int64)[:, None] * (STEPS * held) + t[None, :]
    kept: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((BN, BM), kept)
    for step in tl.range(0, STEPS):
        v = tl.load(rows + step * held)
        for j in tl.static_range(USED):
            if not TERNARY and j > 0:
                v = tl.load(rows + (step * held + j * LANES))
            far, near = _offset(step, j, down_tap, RIGHT, USED, WIDTH, CHUNKS, LANES, PIXEL)
            acc = accumulate(acc, v, tl.load(columns + far + near), j, TERNARY, PTX)
    write(
        y, acc, p, o, group, P, HW, by_hw, hw_places, OUT,
        sums, scale, bias, shift, inverse, zero_point, factor,
        GROUPS, ROWS, EVEN, FAR, TERNARY, HAS_BIAS, CODES,
    )  # fmt: skip


@triton.jit
def _grouped(
    w, x, y, scale, bias, H, W, HO, WO, down, right, top, left, down_tap, right_tap,
    input_zero, inverse, zero_point,
    OUT: tl.constexpr, R: tl.constexpr, S: tl.constexpr, CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr, INTEGER: tl.constexpr, HAS_BIAS: tl.constexpr, CODES: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """A channel of a result's image, BM of its pixels. w [OUT, R, S, CHANNELS]; x as it is."""
    tiles = tl.cdiv(HO * WO, BM)
    plane = tl.program_id(0) // tiles
    n, o = (plane // OUT).to(tl.int64), plane % OUT
    q = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    row, column = q // WO * down - top, q % WO * right - left
    image = x + (n * GROUPS + o // (OUT // GROUPS)) * CHANNELS * H * W
    acc = tl.zeros((BM,), tl.int32 if INTEGER else tl.float32)
    for r in tl.range(0, R):
        h = row + r * down_tap
        for s in tl.static_range(S):
            v = column + s * right_tap
            exists = (h >= 0) & (h < H) & (v >= 0) & (v < W)
            at = image + h * W + v
            for c in tl.range(0, CHANNELS):
                pixel = tl.load(at + tl.cast(c, tl.int64) * H * W, mask=exists, other=input_zero)
                weight = tl.load(w + ((o * R + r) * S + s) * CHANNELS + c)
                if INTEGER:
                    acc += (pixel.to(tl.int32) - input_zero) * weight.to(tl.int32)
                else:
                    acc += pixel.to(tl.float32) * weight.to(tl.float32)
    b = tl.load(bias + o) if HAS_BIAS else 0.0
    out = finish(acc, tl.load(scale + o), b, inverse, zero_point, HAS_BIAS, CODES)
    cells = y + (n * OUT + o) * HO * WO + q
    tl.store(cells, out.to(y.dtype.element_ty), mask=q < HO * WO)


class Weights(NamedTuple):
    """What _conv reads: rows, their sums (int32; unused for float x), and the rows' kind."""

    rows: Tensor
    sums: Tensor
    ternary: bool


def chunks_used(layout: Layout, planes: int) -> int:
    """Chunks of a step: their largest divisor, as a chunk too many could hold an infinity."""
    return next(used for used in range(planes, 0, -1) if layout.count % used == 0)


def prepack(values: Tensor, groups: int, ternary: bool, float_x: bool) -> Tensor:
    """int8 weights [O, R, S, C / groups] as the kernels read them, uint8 [bytes]."""
    o, r, s, channels = values.shape
    if not on_tensor_cores(o, channels, groups):
        return values.contiguous().view(torch.uint8).flatten()
    layout = make_layout((o, r, s, channels), groups, 2 if float_x else 1)
    wide = arrange(values, layout, groups)
    sums = wide.sum((1, 2), dtype=torch.int32)
    if ternary:
        wide = ternary_steps(wide, chunks_used(layout, 8 if float_x else 4), float_x)
    return torch.cat([wide.contiguous().view(torch.uint8).flatten(), sums.view(torch.uint8)])


def packed_bytes(
    shape: tuple[int, int, int, int], groups: int, ternary: bool, float_x: bool
) -> int:
    """Length of what prepack returns for weights of `shape` (O, R, S, C / groups)."""
    if not on_tensor_cores(shape[0], shape[3], groups):
        return math.prod(shape)
    layout = make_layout(shape, groups, 2 if float_x else 1)
    planes = 8 if float_x else 4
    lanes = layout.count // chunks_used(layout, planes) * planes // 4 if ternary else layout.count
    return groups * layout.rows * (lanes * layout.lanes + 4)


def ternary_steps(wide: Tensor, used: int, float_x: bool) -> Tensor:
    """Chunks [rows, chunks, lanes], `used` a step, as planes [rows, steps, lanes]."""
    planes, lane = (8, torch.int16) if float_x else (4, torch.int8)
    steps = wide.unflatten(1, (-1, used))
    steps = torch.nn.functional.pad(steps, (0, 0, 0, planes - used)).flatten(-2)
    return pack_planes(steps, lane, planes * wide.shape[2])


def multiply(
    x: Tensor,
    weights: Weights,
    layout: Layout,
    kernel: tuple[int, int],
    window: Window,
    zero_point: int,
    finishing: Finishing,
    y: Tensor,
) -> None:
    """Fills y; weights lie as `layout` says, in planes or as int8 or as x's dtype."""
    where, integer = target(), x.dtype == torch.uint8
    image = make_map(x, layout, kernel, window, zero_point)
    used = chunks_used(layout, 8 if weights.ternary and not integer else 4)
    held = layout.lanes * weights.rows.element_size() * (1 if weights.ternary else used)
    itemsize, depth = image.values.element_size(), used * layout.lanes
    pixels = len(x) * y.shape[2] * y.shape[3]
    blocks = conv_blocks(pixels, layout.rows, window.groups, depth, held, itemsize, where)
    parts = window.groups * layout.rows // blocks.rows
    factor = FACTOR16 if weights.ternary and not integer else 1.0
    _conv[(triton.cdiv(pixels, blocks.columns) * parts,)](
        weights.rows, image.values, y, weights.sums, *finishing.vectors,
        *geometry(image, y, window.groups), *finishing.numbers(factor),
        STEPS=layout.count // used, USED=used, ROWS=layout.rows, TERNARY=weights.ternary,
        **constants(image, layout, y, window.groups), **finishing.flags, PTX=where.ptx,
        BM=blocks.columns, BN=blocks.rows, num_warps=blocks.warps, num_stages=blocks.stages,
        enable_fp_fusion=False,
    )  # fmt: skip


def run_grouped(
    x: Tensor,
    weights: Tensor,
    shape: tuple[int, int, int, int],
    window: Window,
    zero_point: int,
    finishing: Finishing,
    y: Tensor,
) -> None:
    """Fills y; weights [O, R, S, C / groups], of `shape`, are int8 or floats."""
    o, r, s, channels = shape
    n, c, h, w = x.shape
    ho, wo = y.shape[2:]
    bm = min(512, max(32, triton.next_power_of_2(ho * wo)))
    _grouped[(triton.cdiv(ho * wo, bm) * n * o,)](
        weights, x, y, *finishing.vectors, h, w, ho, wo, *window.stride,
        *window.padding, *window.dilation, zero_point, *finishing.numbers(1.0)[1:3],
        OUT=o, R=r, S=s, CHANNELS=channels, GROUPS=window.groups, INTEGER=x.dtype == torch.uint8,
        **finishing.flags, BM=bm, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


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
    """x [N, C, H, W] contiguous, uint8 or float; packed of `prepack`; y [N, O, Ho, Wo].

    weight_shape: (O, R, S, C / groups). quantized: scale and zero point of uint8 x; scale [O]
    float32 holds the factor already.
    """
    window = Window(stride, padding, dilation, groups)
    o, r, s, channels = weight_shape
    zero_point = 0 if quantized is None else quantized[1]
    size = window.size((x.shape[2], x.shape[3]), (r, s))
    y = torch.empty(x.shape[0], o, *size, dtype=output.dtype, device=x.device)
    finishing = Finishing(scale, bias, output, 128 - zero_point if quantized else 0)
    check_compiler(quantized is not None, target())
    if not on_tensor_cores(o, channels, groups):
        run_grouped(x, packed.view(torch.int8), weight_shape, window, zero_point, finishing, y)
        return y
    layout = make_layout(weight_shape, groups, 1 if quantized else 2)
    sums = 4 * groups * layout.rows
    lane = torch.int16 if ternary and not quantized else torch.int8
    weights = Weights(packed[:-sums].view(lane), packed[-sums:].view(torch.int32), ternary)
    for part, to in pieces(x, y):
        multiply(part, weights, layout, (r, s), window, zero_point, finishing, to)
    return y

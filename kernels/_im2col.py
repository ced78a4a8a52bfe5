# SPDX-License-Identifier: Apache-2.0
"""Images as convolutions on tensor cores read them, and how their weights' depth is cut.

    x    [N, C, H, W]                    uint8 codes or floats
    map  [N, HM, WM, groups, pitch]      int8 (codes less 128) or floats, padding included

A group's channels are padded to `pitch` = chunks of `lanes` elements of 32 or 64 bytes, so that a
convolution reads 16 bytes at a time and never asks whether a pixel exists:

    none     a pixel holds its channels                       filter R x S on the map
    columns  it holds those of the S taps of a filter's row   filter R x 1, no stride along W
    whole    it holds all R * S taps, as im2col does          filter 1 x 1 on [N, Ho, Wo]

Folding taps into pixels keeps the depth of few channels short: 3 channels, 3x3, take one chunk of
32 instead of nine. Chunk q of a row of weights stands for tap q // chunks in row-major order.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._target import target
from torch import Tensor

NONE, COLUMNS, WHOLE = 0, 1, 2


class Layout(NamedTuple):
    """What weights and images agree on; pixels are folded by `fold`, rows those of a group."""

    fold: int
    filter: tuple[int, int]
    lanes: int
    chunks: int
    rows: int

    @property
    def pitch(self) -> int:
        """Elements of a group in a pixel of the map."""
        return self.lanes * self.chunks

    @property
    def count(self) -> int:
        """Chunks of a row of weights."""
        return self.filter[0] * self.filter[1] * self.chunks


class Window(NamedTuple):
    """A convolution's geometry, by height and width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def size(self, image: tuple[int, int], filter_: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result."""
        reach = [d * (k - 1) + 1 for k, d in zip(filter_, self.dilation, strict=True)]
        room = [i + 2 * p - k for i, p, k in zip(image, self.padding, reach, strict=True)]
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1


def on_tensor_cores(out_channels: int, channels: int, groups: int) -> bool:
    """Whether groups are large enough; channels are those of one group."""
    return groups == 1 or min(channels, out_channels // groups) >= 8


def make_layout(shape: tuple[int, int, int, int], groups: int, itemsize: int) -> Layout:
    """For weights of shape (O, R, S, C / groups); itemsize of lanes: 1 for int8 images, else 2."""
    o, r, s, channels = shape
    unit = 32 // itemsize
    kinds = ((r * s, channels, (r, s)), (r, s * channels, (r, 1)), (1, r * s * channels, (1, 1)))
    depths = [taps * -(-depth // unit) * unit for taps, depth, _ in kinds]
    # A folded map is larger: only for a third of the depth.
    fold = next(kind for kind in range(3) if 2 * depths[kind] <= 3 * min(depths))
    depth = -(-kinds[fold][1] // unit)
    lanes = unit if depth % 2 and depth < 5 else 2 * unit
    chunks = -(-depth * unit // lanes)
    rows = o // groups
    rows = 16 if rows <= 16 else 32 if rows <= 32 else -(-rows // 64) * 64
    return Layout(fold, kinds[fold][2], lanes, chunks, rows)


def arrange(values: Tensor, layout: Layout, groups: int) -> Tensor:
    """Weights [O, R, S, C / groups] as [groups * rows, chunks of a row, lanes], zeros added."""
    taps = layout.filter[0] * layout.filter[1]
    wide = values.reshape(groups, values.shape[0] // groups, taps, -1)
    missing = (layout.pitch - wide.shape[3], layout.rows - wide.shape[1])
    wide = torch.nn.functional.pad(wide, (0, missing[0], 0, 0, 0, missing[1]))
    return wide.reshape(groups * layout.rows, layout.count, layout.lanes)


def reciprocal(divisor: int) -> tuple[int, int]:
    """Multiplier, whose 32 bits are passed as a negative number, and shift for `divide`."""
    places = (divisor - 1).bit_length()
    return -(-(2 ** (31 + places)) // divisor) - 2**32, places


@triton.jit
def divide(p, multiplier, places, EVEN: tl.constexpr):
    """p // d of 0 <= p < 2**31 by what `reciprocal(d)` is: three instructions.

    EVEN neighbours have the same quotient.
    """
    high = tl.umulhi(p.to(tl.uint32) << 1, tl.cast(multiplier, tl.int32).to(tl.uint32))
    return tl.max_constancy(high >> places, EVEN).to(tl.int32)


@triton.jit
def _channel(x, c, channels, at, exists, fill):
    """Channels c of the pixels at `at`, as int32."""
    return tl.load(x + at, mask=exists & (c < channels)[:, None], other=fill).to(tl.int32)


@triton.jit
def _turned8(a, b, c, d):
    """Words of four pixels of four channels -> four words of a pixel, codes less 128."""
    p, q, r, s = tl.inline_asm_elementwise(
        "{ .reg .b32 t, u, v, w; prmt.b32 t, $4, $5, 0x5140; prmt.b32 u, $4, $5, 0x7362;"
        " prmt.b32 v, $6, $7, 0x5140; prmt.b32 w, $6, $7, 0x7362; prmt.b32 $0, t, v, 0x5410;"
        " prmt.b32 $1, t, v, 0x7632; prmt.b32 $2, u, w, 0x5410; prmt.b32 $3, u, w, 0x7632; }",
        "=&r,=&r,=&r,=&r,r,r,r,r", [a, b, c, d],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    joined = tl.join(tl.join(p, r), tl.join(q, s)) ^ -2139062144  # 0x80 in every byte
    return joined.reshape(a.shape[0], 4 * a.shape[1])


@triton.jit
def _turned16(a, b):
    """Words of two pixels of two channels -> two words of a pixel."""
    p, q = tl.inline_asm_elementwise(
        "prmt.b32 $0, $2, $3, 0x5410; prmt.b32 $1, $2, $3, 0x7632;",
        "=&r,=&r,r,r", [a, b], dtype=(tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    return tl.join(p, q).reshape(a.shape[0], 2 * a.shape[1])


@triton.jit
def _border_pixel(b, top, left, W, HM, WM):
    """Pixel b of a map's border: the rows above and below first, then both sides of each row."""
    sides = tl.maximum(b - 2 * top * WM, 0)
    across = tl.maximum(2 * left, 1)
    row, edge = sides // across, sides % across
    beside = (row + top) * WM + tl.where(edge < left, edge, edge + W)
    above_or_below = tl.where(b < top * WM, b, b + (HM - 2 * top) * WM)
    return tl.where(b < 2 * top * WM, above_or_below, beside)


@triton.jit
def _spread(
    x, to, hw, W, by_w, w_places, HM, WM, top, left, channels, fill, inner, border, tiles,
    EVEN: tl.constexpr, GROUPS: tl.constexpr, PITCH: tl.constexpr, EACH: tl.constexpr,
    WIDE: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Unfolded: BC channels of BP pixels of x, as they lie, or (from tile `inner`) of the border.

    Channels that x lacks meet weights of 0. EACH channels travel a word of the map: bytes would
    cost five times the instructions. WIDE: x is read as words of EACH pixels too, and PTX turns
    them. fill: of the border, in x's type.
    """
    n = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    group = tl.program_id(1) // (PITCH // BC)
    STEP: tl.constexpr = GROUPS * PITCH // EACH
    word = tl.program_id(1) % (PITCH // BC) * (BC // EACH) + tl.arange(0, BC // EACH)
    pixels = to + n * HM * WM * STEP + group * (PITCH // EACH) + word[None, :]
    c = word * EACH
    HW = hw * EVEN
    first = ((n * GROUPS + group) * channels + c) * HW
    if tile < inner:
        q = tile * BP + tl.arange(0, BP)
        if WIDE:
            words = tile * (BP // EACH) + tl.arange(0, BP // EACH)
            PLANE = hw * (EVEN // EACH)
            at = (first // EACH)[:, None] + words[None, :]
            exists = (words < PLANE)[None, :]
            v = _channel(x, c, channels, at, exists, 0)
            w = _channel(x + PLANE, c + 1, channels, at, exists, 0)
            if EACH == 4:
                third = _channel(x + PLANE * 2, c + 2, channels, at, exists, 0)
                fourth = _channel(x + PLANE * 3, c + 3, channels, at, exists, 0)
                v = _turned8(v, w, third, fourth)
            else:
                v = _turned16(v, w)
        else:
            at = first[:, None] + q[None, :]
            exists = (q < HW)[None, :]
            v = _channel(x, c, channels, at, exists, fill)
            if EACH == 2:
                v &= 65535  # without the copies of its sign
            if EACH > 1:
                v |= _channel(x + HW, c + 1, channels, at, exists, fill) << (32 // EACH)
            if EACH == 4:
                v |= _channel(x + HW * 2, c + 2, channels, at, exists, fill) << 16
                v |= _channel(x + HW * 3, c + 3, channels, at, exists, fill) << 24
                v ^= -2139062144  # 0x80 in every byte
        row = divide(q, by_w, w_places, 1)
        pixel = (row + top) * WM + left + q - row * W
        tl.store(pixels + pixel[:, None].to(tl.int64) * STEP, tl.trans(v), mask=(q < HW)[:, None])
    else:
        b = (tile - inner) * BP + tl.arange(0, BP)
        pixel = _border_pixel(b, top, left, W, HM, WM)
        outside = fill
        if EACH == 4:
            outside = (fill - 128) & 255
            outside = (outside | outside << 8) | (outside | outside << 8) << 16
        values = tl.full((BP, BC // EACH), outside, tl.int32)
        tl.store(pixels + pixel[:, None].to(tl.int64) * STEP, values, mask=(b < border)[:, None])


@triton.jit
def _fold(
    x, to, H, W, HM, WM, top, left, down, right, down_tap, right_tap, fill,
    channels: tl.constexpr, R: tl.constexpr, S: tl.constexpr, GROUPS: tl.constexpr,
    PITCH: tl.constexpr, CODES: tl.constexpr, BK: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Folded: BK of a pixel's elements, those of R x S taps, in BW columns of the map."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(2) // (PITCH // BK)
    k = tl.program_id(2) % (PITCH // BK) * BK + tl.arange(0, BK)
    column = tl.program_id(1) * BW + tl.arange(0, BW)
    tap, c = k // channels, k % channels
    h = row % HM * down + tap // S * down_tap - top
    w = (column * right)[None, :] + (tap % S * right_tap)[:, None] - left
    plane = row // HM * (GROUPS * channels) + group * channels + c
    exists = (tap < R * S)[:, None] & (h >= 0)[:, None] & (h < H)[:, None] & (w >= 0) & (w < W)
    v = tl.load(x + ((plane * H + h) * W)[:, None] + w, mask=exists, other=fill)
    if CODES:
        v = (v ^ 128).to(tl.int8, bitcast=True)
    pixels = to + (row * WM * GROUPS + group) * PITCH + k[None, :]
    at = column[:, None] * (GROUPS * PITCH)
    tl.store(pixels + at, tl.trans(v), mask=(column < WM)[:, None])


class Map(NamedTuple):
    """A map, and how the (folded) filter steps on it: pixels a row, stride, dilation."""

    values: Tensor
    stride: tuple[int, int]
    dilation: tuple[int, int]


def make_map(
    x: Tensor, layout: Layout, kernel: tuple[int, int], window: Window, zero_point: int
) -> Map:
    """x [N, C, H, W] contiguous, uint8 or float; padding holds zero_point (of floats: 0)."""
    n, c, h, w = x.shape
    (sh, sw), (ph, pw), (dh, dw), groups = window
    ho, wo = window.size((h, w), kernel)
    fold, pitch, codes = layout.fold, layout.pitch, x.dtype == torch.uint8
    hm, wm = (ho if fold == WHOLE else h + 2 * ph), (w + 2 * pw if fold == NONE else wo)
    dtype = torch.int8 if codes else x.dtype
    to = torch.empty(n, hm, wm, groups * pitch, dtype=dtype, device=x.device)
    fill = zero_point if codes else 0
    if fold == NONE:
        each = 4 // x.element_size()
        aligned = x.data_ptr() % 4 == 0 and h * w % each == 0
        wide = each > 1 and aligned and target().ptx
        whole = (torch.uint8, torch.int16, torch.int32)[(4, 2, 1).index(each)]
        words = x.flatten().view(torch.int32 if wide else whole)
        even, bp = math.gcd(h * w, 16), min(128, max(16, triton.next_power_of_2(h * w)))
        inner, border = triton.cdiv(h * w, bp), hm * wm - h * w
        tiles = inner + triton.cdiv(border, bp)
        _spread[(n * tiles, groups * layout.chunks)](
            words, to.view(torch.int32), h * w // even, w, *reciprocal(w), hm, wm,
            ph, pw, c // groups, fill, inner, border, tiles, EVEN=even, GROUPS=groups,
            PITCH=pitch, EACH=each, WIDE=wide, BC=layout.lanes, BP=bp, num_warps=2,
        )  # fmt: skip
        return Map(to, (sh, sw), (dh, dw))
    bw = min(64, max(16, triton.next_power_of_2(wm)))
    grid = (n * hm, triton.cdiv(wm, bw), groups * layout.chunks)
    down, taps = (sh, kernel[0]) if fold == WHOLE else (1, 1)
    _fold[grid](
        x, to, h, w, hm, wm, ph, pw, down, sw, dh, dw, fill, channels=c // groups, R=taps,
        S=kernel[1], GROUPS=groups, PITCH=pitch, CODES=codes, BK=layout.lanes, BW=bw,
    )  # fmt: skip
    return Map(to, (1, 1) if fold == WHOLE else (sh, 1), (dh, 1))

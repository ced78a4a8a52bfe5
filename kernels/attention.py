# SPDX-License-Identifier: Apache-2.0
"""ESA and HFAB of super-resolution networks on NCHW maps, each read or written once or twice.

ESA, x * sigmoid(conv4(stretched(pooled map) + conv_f(conv1(x)))):

    conv1 and conv2 have nothing between them, nor have conv1 and conv_f: the launcher multiplies
    their weights. What is left reads x twice and writes y once:

    _strided   x -> conv2(conv1(x)) [f, H/2, W/2]     3 x 3 of stride 2 on x itself
    _pool      -> [f, H/6, W/6]                       then convolutions by PyTorch, on a 36th
    _mask      x, pooled map -> y                     a program: all channels of BP pixels

HFAB, x * sigmoid(branch(x)), a chain of 3 x 3 convolutions with few channels inside:

    _chain     a program: TILE x TILE pixels, all layers. Maps between layers lie in `scratch`, a
               stretch of memory of the program's own that stays in the caches: layer i is computed
               on the tile and as many pixels around it as layers follow. A barrier separates
               layers. Programs take tile after tile, so that scratch does not grow with the image.
               Larger tiles read less around them, smaller ones leave no processor idle
               (`tile_side`).

Products are those of x's dtype with float32 sums; float32 ones are not rounded to tf32.
"""

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._bilinear import between
from ternary_ops.kernels._target import target
from torch import Tensor


def tile_side(n: int, h: int, w: int, processors: int) -> int:
    """Pixels along a tile of _chain: the largest of which every processor has one."""
    sides = (64, 32, 16)
    tiles = [n * triton.cdiv(h, side) * triton.cdiv(w, side) for side in sides]
    enough = (side for side, count in zip(sides, tiles, strict=True) if count >= processors)
    return next(enough, sides[-1])


@triton.jit
def _strided(
    x, w, bias, y, height, width, out_h, out_w, C: tl.constexpr, F: tl.constexpr,
    CP: tl.constexpr, FP: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """3 x 3, stride 2, no padding; w [9, FP, CP]."""
    image = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = p < out_h * out_w
    row, column = p // out_w, p % out_w
    c, f = tl.arange(0, CP), tl.arange(0, FP)
    plane = x + image * C * height * width + c[:, None] * (height * width)
    acc = tl.zeros((FP, BP), tl.float32)
    for tap in tl.range(9, num_stages=1):
        at = (2 * row + tap // 3) * width + 2 * column + tap % 3
        v = tl.load(plane + at[None, :], mask=inside[None, :] & (c < C)[:, None], other=0.0)
        k = tl.load(w + tap * FP * CP + f[:, None] * CP + c[None, :])
        acc = tl.dot(k, v, acc, input_precision="ieee")
    acc += tl.load(bias + f)[:, None]
    to = y + (image * F + f[:, None]) * (out_h * out_w) + p[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=inside[None, :] & (f < F)[:, None])


@triton.jit
def _pool(x, y, height, width, out_h, out_w, BLOCK: tl.constexpr):
    """Max over 7 x 7, stride 3, of one plane."""
    plane = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = p < out_h * out_w
    from_ = x + plane * height * width + (3 * (p // out_w)) * width + 3 * (p % out_w)
    best = tl.load(from_, mask=inside, other=0.0)
    for tap in tl.static_range(1, 49):
        v = tl.load(from_ + (tap // 7) * width + tap % 7, mask=inside, other=0.0)
        best = tl.maximum(best, v)
    tl.store(y + plane * out_h * out_w + p, best, mask=inside)


@triton.jit
def _mask(
    x, low, narrow, narrow_bias, wide, wide_bias, y, pixels, width, cells_h, cells_w, tall, broad,
    C: tl.constexpr, F: tl.constexpr, CP: tl.constexpr, FP: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """narrow [FP, CP] makes conv_f(conv1(x)), wide [CP, FP] is conv4."""
    image = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    inside = p < pixels
    c, f = tl.arange(0, CP), tl.arange(0, FP)
    cell = (image * C + c[:, None]) * pixels + p[None, :]
    whole = inside[None, :] & (c < C)[:, None]
    v = tl.load(x + cell, mask=whole, other=0.0)
    k = tl.load(narrow + f[:, None] * CP + c[None, :])
    s = tl.dot(k, v, input_precision="ieee") + tl.load(narrow_bias + f)[:, None]
    above, below, down = between(p // width, cells_h, tall)
    near, far, right = between(p % width, cells_w, broad)
    known = inside[None, :] & (f < F)[:, None]
    map_ = low + (image * F + f[:, None]) * (cells_h * cells_w)
    a = tl.load(map_ + (above * cells_w + near)[None, :], mask=known, other=0.0).to(tl.float32)
    b = tl.load(map_ + (above * cells_w + far)[None, :], mask=known, other=0.0).to(tl.float32)
    d = tl.load(map_ + (below * cells_w + near)[None, :], mask=known, other=0.0).to(tl.float32)
    e = tl.load(map_ + (below * cells_w + far)[None, :], mask=known, other=0.0).to(tl.float32)
    upper = (1.0 - right)[None, :] * a + right[None, :] * b
    lower = (1.0 - right)[None, :] * d + right[None, :] * e
    s += (1.0 - down)[None, :] * upper + down[None, :] * lower
    k = tl.load(wide + c[:, None] * FP + f[None, :])
    t = tl.dot(k, s.to(v.dtype), input_precision="ieee") + tl.load(wide_bias + c)[:, None]
    out = v.to(tl.float32) * tl.sigmoid(t)
    tl.store(y + cell, out.to(y.dtype.element_ty), mask=whole)


@triton.jit
def _layer(
    source, w, bias, to, gate, slope, top, left, height, width, IN: tl.constexpr, OUT: tl.constexpr,
    IP: tl.constexpr, OP: tl.constexpr, SIDE: tl.constexpr, FROM: tl.constexpr,
    FROM_IMAGE: tl.constexpr, LAST: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """One convolution on SIDE x SIDE pixels whose first is (top, left) of the image.

    source: the image, or a square of scratch of side FROM, one pixel more on each side. Outside the
    image a map is 0, whatever the layer would make there. LAST: to is y, gate is x.
    """
    i, o = tl.arange(0, IP), tl.arange(0, OP)
    for first in tl.range(0, SIDE * SIDE, BP, num_stages=1):
        p = first + tl.arange(0, BP)
        row, column = p // SIDE, p % SIDE
        r, s = top + row, left + column
        inside = (p < SIDE * SIDE) & (r >= 0) & (r < height) & (s >= 0) & (s < width)
        acc = tl.zeros((OP, BP), tl.float32)
        for tap in tl.range(9, num_stages=1):
            if FROM_IMAGE:
                rr, ss = r + tap // 3 - 1, s + tap % 3 - 1
                known = (p < SIDE * SIDE) & (rr >= 0) & (rr < height) & (ss >= 0) & (ss < width)
                at = i.to(tl.int64)[:, None] * (height * width) + (rr * width + ss)[None, :]
            else:
                known = p < SIDE * SIDE
                at = i[:, None] * (FROM * FROM)
                at += ((row + tap // 3) * FROM + column + tap % 3)[None, :]
            v = tl.load(source + at, mask=known[None, :] & (i < IN)[:, None], other=0.0)
            k = tl.load(w + tap * OP * IP + o[:, None] * IP + i[None, :])
            acc = tl.dot(k, v, acc, input_precision="ieee")
        acc += tl.load(bias + o)[:, None]
        if LAST:
            whole = inside[None, :] & (o < OUT)[:, None]
            at = o.to(tl.int64)[:, None] * (height * width) + (r * width + s)[None, :]
            x = tl.load(gate + at, mask=whole, other=0.0).to(tl.float32)
            tl.store(to + at, (x * tl.sigmoid(acc)).to(to.dtype.element_ty), mask=whole)
        else:
            acc = tl.where(acc < 0, acc * slope, acc)
            acc = tl.where(inside[None, :], acc, 0.0)
            at = o[:, None] * (SIDE * SIDE) + p[None, :]
            kept = (p < SIDE * SIDE)[None, :] & (o < OUT)[:, None]
            tl.store(to + at, acc.to(to.dtype.element_ty), mask=kept)


@triton.jit
def _chain(
    x, w, biases, slopes, y, scratch, height, width, tiles_h, tiles_w, tiles,
    LAYERS: tl.constexpr, C: tl.constexpr, F: tl.constexpr, CP: tl.constexpr, FP: tl.constexpr,
    TILE: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """w: [9, FP, CP], then [9, FP, FP] for each inner layer, then [9, CP, FP]; biases alike."""
    SIDE: tl.constexpr = TILE + 2 * (LAYERS - 1)
    ROOM: tl.constexpr = F * SIDE * SIDE
    own = scratch + tl.program_id(0).to(tl.int64) * (2 * ROOM)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=1):
        image = (tile // (tiles_h * tiles_w)).to(tl.int64)
        top = tile // tiles_w % tiles_h * TILE
        left = tile % tiles_w * TILE
        image_x = x + image * C * height * width
        tl.debug_barrier()  # what the tile before still reads
        around: tl.constexpr = LAYERS - 1
        _layer(
            image_x, w, biases, own, image_x, tl.load(slopes), top - around, left - around,
            height, width, C, F, CP, FP, SIDE, SIDE, True, False, BP,
        )  # fmt: skip
        for layer in tl.static_range(1, LAYERS - 1):
            tl.debug_barrier()
            _layer(
                own + (layer - 1) % 2 * ROOM,
                w + 9 * FP * CP + (layer - 1) * 9 * FP * FP, biases + layer * FP,
                own + layer % 2 * ROOM, image_x, tl.load(slopes + layer),
                top - (LAYERS - 1 - layer), left - (LAYERS - 1 - layer), height, width, F, F,
                FP, FP, TILE + 2 * (LAYERS - 1 - layer), TILE + 2 * (LAYERS - layer),
                False, False, BP,
            )  # fmt: skip
        tl.debug_barrier()
        _layer(
            own + LAYERS % 2 * ROOM, w + 9 * FP * CP + (LAYERS - 2) * 9 * FP * FP,
            biases + (LAYERS - 1) * FP, y + image * C * height * width, image_x, 1.0, top, left,
            height, width, F, C, FP, CP, TILE, TILE + 2, False, True, BP,
        )  # fmt: skip


def _wide(channels: int) -> int:
    """The depth or height of a product that holds so many channels."""
    return max(16, triton.next_power_of_2(channels))


def _taps(w: Tensor, out: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """[O, I, R, S] -> [R * S, out, inputs], zeros around."""
    wide = torch.nn.functional.pad(
        w.flatten(2).permute(2, 0, 1), (0, inputs - w.shape[1], 0, out - w.shape[0])
    )
    return wide.to(dtype).contiguous()


def _vector(b: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(b.float(), (0, size - len(b)))


def esa(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """x [N, C, H, W] contiguous, not empty; see ternary_ops.ops.esa."""
    n, c, h, w = x.shape
    f, dtype = weights[0].shape[0], x.dtype
    cp, fp = _wide(c), _wide(f)
    conv1 = weights[0].double().flatten(1)  # [f, C]
    shift = biases[0].double()
    # conv2 of conv1 and conv_f of conv1, multiplied out.
    strided = torch.einsum("oirs,ic->ocrs", weights[2].double(), conv1)
    strided_bias = weights[2].double().sum((2, 3)) @ shift + biases[2].double()
    conv_f = weights[1].double().flatten(1)
    narrow, narrow_bias = conv_f @ conv1, conv_f @ shift + biases[1].double()
    out_h, out_w = (h - 3) // 2 + 1, (w - 3) // 2 + 1
    small = torch.empty(n, f, out_h, out_w, dtype=dtype, device=x.device)
    sizes = {"C": c, "F": f, "CP": cp, "FP": fp}
    _strided[(triton.cdiv(out_h * out_w, 64), n)](
        x, _taps(strided, fp, cp, dtype), _vector(strided_bias, fp), small, h, w, out_h, out_w,
        **sizes, BP=64,
    )  # fmt: skip
    cells = ((out_h - 7) // 3 + 1, (out_w - 7) // 3 + 1)
    low = torch.empty(n, f, *cells, dtype=dtype, device=x.device)
    _pool[(triton.cdiv(cells[0] * cells[1], 256), n * f)](
        small, low, out_h, out_w, *cells, BLOCK=256
    )
    layers = list(zip(weights[3:-1], biases[3:-1], strict=True))
    for i, (weight, bias) in enumerate(layers):
        padding = weight.shape[2] // 2, weight.shape[3] // 2
        low = torch.nn.functional.conv2d(low, weight.to(dtype), bias.to(dtype), padding=padding)
        low = low.relu() if i < len(layers) - 1 else low
    y = torch.empty_like(x)
    tall, broad = (
        float(torch.tensor(small, dtype=torch.float32) / whole)
        for small, whole in zip(cells, (h, w), strict=True)
    )
    wide = _taps(weights[-1], cp, fp, dtype)
    _mask[(triton.cdiv(h * w, 64), n)](
        x, low.contiguous(), _taps(narrow[..., None, None], fp, cp, dtype),
        _vector(narrow_bias, fp), wide, _vector(biases[-1], cp), y, h * w, w, *cells, tall, broad,
        **sizes, BP=64,
    )  # fmt: skip
    return y


def hf_attention(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], slopes: list[float]
) -> Tensor:
    """x [N, C, H, W] contiguous, not empty; at least two 3 x 3 layers, equally wide inside."""
    n, c, h, w = x.shape
    f, dtype, layers = weights[0].shape[0], x.dtype, len(weights)
    cp, fp = _wide(c), _wide(f)
    widths = [(fp, cp), *[(fp, fp)] * (layers - 2), (cp, fp)]
    banks = [_taps(k, *s, dtype).flatten() for k, s in zip(weights, widths, strict=True)]
    vectors = [_vector(b, s[0]) for b, s in zip(biases, widths, strict=True)]
    tile = tile_side(n, h, w, target().processors)
    tiles_h, tiles_w = triton.cdiv(h, tile), triton.cdiv(w, tile)
    tiles = n * tiles_h * tiles_w
    programs = min(tiles, 4 * target().processors)
    side = tile + 2 * (layers - 1)
    scratch = torch.empty(programs, 2, f, side, side, dtype=dtype, device=x.device)
    y = torch.empty_like(x)
    _chain[(programs,)](
        x, torch.cat(banks), torch.cat(vectors), torch.tensor(slopes, device=x.device), y, scratch,
        h, w, tiles_h, tiles_w, tiles, LAYERS=layers, C=c, F=f, CP=cp, FP=fp, TILE=tile, BP=128,
        num_warps=8,
    )  # fmt: skip
    return y

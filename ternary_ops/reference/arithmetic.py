# SPDX-License-Identifier: Apache-2.0
"""The one reference of every operator, in NumPy: exact integers, roundings of docs/architecture.md.

A quantized operand is the triple (q uint8, scale float32, zero point int) and stands for
f32(q - zp) * scale; a float operand is an array. Images are [N, C, H, W]: channels are axis 1.
Quantized results take `y = (scale, zp)`; `y = None` leaves float32. `conv2d` and `linear` of floats
work in float64: kernels are held to them within a bound.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadWeights, UnsupportedShape, need
from ternary_ops.layout.codes import FINE_PARTS, quads
from ternary_ops.reference.activations import sigmoid32

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = int | tuple[int, int]
Params: TypeAlias = tuple[float | np.float32, int]
Quantized: TypeAlias = tuple[Array, float | np.float32, int]

_TINY = np.finfo(np.float32).tiny  # the smallest scale whose reciprocal is finite in float32


def affine_params(lo: float, hi: float) -> tuple[np.float32, int]:
    """Scale and zero point of the u8 range [lo, hi], widened to hold 0; float64, rounded once.

    An empty range (0, 0) gets scale 1. Raises BadWeights when a bound is not finite or lo > hi.
    """
    lo, hi = float(lo), float(hi)
    if not (np.isfinite(lo) and np.isfinite(hi) and lo <= hi):
        raise BadWeights(need("a range of finite lo <= hi", f"[{lo}, {hi}]", "Calibrate again."))
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if lo == hi:
        return np.float32(1), 0
    scale = max(np.float32((hi - lo) / 255), _TINY)
    return scale, int(np.clip(np.rint(-lo / float(scale)), 0, 255))


def fine_params(lo: float, hi: float) -> tuple[np.float32, int]:
    """affine_params of a range widened so that the zero point lies in 4..251 (quantize_fine)."""
    room = FINE_PARTS // 2 / (255 - FINE_PARTS // 2)
    return affine_params(min(lo, -room * hi), max(hi, -room * lo))


def quantize(x: Array, scale: float | np.float32, zp: int) -> NDArray[np.uint8]:
    """clamp(round_half_even(x * f32(1/scale)) + zp, 0, 255); NaN becomes 0."""
    inv = np.float32(1) / np.float32(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(np.asarray(x, np.float32) * inv) + np.float32(zp)
    # fmax returns its number when the other side is NaN.
    q: NDArray[np.uint8] = np.minimum(np.fmax(steps, np.float32(0)), np.float32(255)).astype(
        np.uint8
    )
    return q


def quantize_fine(x: Array, scale: float | np.float32, zp: int) -> NDArray[np.uint8]:
    """Eleven bits in two codes: x [N, C, H, W] to uint8 [N, 8 * ceil(C / 4), H, W].

    Behind the codes of four channels, each round_half_even(v) + zp of v = x * f32(1/scale) clipped
    to -1024..1024, lie round_half_even((v - round_half_even(v)) * 8) + zp: what rounding took away.
    All are clipped to 0..255, NaN becomes 0, and channels that are not there hold zp. A zero point
    in 4..251 (fine_params) leaves room for both.
    """
    n, c, *image = np.shape(x)
    padded = np.zeros((n, quads(c), 4, *image), np.float32)
    padded.reshape(n, -1, *image)[:, :c] = x
    inv = np.float32(1) / np.float32(scale)
    with np.errstate(over="ignore", invalid="ignore"):
        v = np.clip(padded * inv, np.float32(-1024), np.float32(1024))
        whole = np.rint(v)
        parts = np.rint((v - whole) * np.float32(FINE_PARTS))
        codes = np.fmax(np.stack([whole, parts], 2) + np.float32(zp), np.float32(0))
    q: NDArray[np.uint8] = np.minimum(codes, np.float32(255)).astype(np.uint8)
    return q.reshape(n, -1, *image)


def dequantize(q: Array, scale: float | np.float32, zp: int) -> NDArray[np.float32]:
    """f32(q - zp) * scale."""
    out: NDArray[np.float32] = _centered(q, zp).astype(np.float32) * np.float32(scale)
    return out


def conv2d_acc(
    q: Array,
    zp: int,
    w: Array,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> NDArray[np.int64]:
    """Exact sum of w * (q - zp): u8 [N, C, H, W], w [O, C/groups, R, S] -> int64 [N, O, Ho, Wo]."""
    acc = conv2d(_centered(q, zp), w, None, None, stride, padding, dilation, groups)
    # Products of 8-bit numbers stay below 2**16, so float64 adds 2**37 of them exactly.
    return acc.astype(np.int64)


def linear_acc(q: Array, zp: int, w: Array) -> NDArray[np.int64]:
    """Exact sum of w * (q - zp): q uint8 [..., K], w integers [N, K] -> int64 [..., N]."""
    return linear(_centered(q, zp), w, None, None).astype(np.int64)


def epilogue(
    acc: Array,
    scale: Array | None,
    bias: Array | None = None,
    residual: Array | Quantized | None = None,
    lo: float | None = None,
    hi: float | None = None,
    y: Params | None = None,
    slope: Array | None = None,
    gate: Array | Quantized | None = None,
) -> Array:
    """Turn an accumulator [N, O, ...] into float32 or, with `y`, uint8: one float32 step at a time.

    scale, bias: float32 [O] (scale: the effective one; None for weights that carry their own);
    residual: an operand of acc's shape; lo, hi: the activation's bounds; slope: float32 [O] or [1],
    max(0, v) + slope * min(0, v) of the sum v, in place of bounds; gate: an operand that is
    multiplied with the sigmoid of the sum, before the residual is added.
    """
    per_channel = (1, -1, *[1] * (acc.ndim - 2))
    out = acc.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if scale is not None:
            out = out * np.asarray(scale, np.float32).reshape(per_channel)
        if bias is not None:
            out = out + np.asarray(bias, np.float32).reshape(per_channel)
        if gate is not None:
            out = sigmoid32(out) * _value(gate)
        if residual is not None:
            out = out + _value(residual)
        if slope is not None:
            zero, factor = np.float32(0), np.asarray(slope, np.float32).reshape(per_channel)
            out = np.maximum(out, zero) + factor * np.minimum(out, zero)
    return _finish(out, lo, hi, y)


def add(
    a: Array | Quantized,
    b: Array | Quantized,
    lo: float | None = None,
    hi: float | None = None,
    y: Params | None = None,
) -> Array:
    """a + b, then the activation; axes of size 1 broadcast."""
    return _finish(_value(a) + _value(b), lo, hi, y)


def clamp(
    x: Array | Quantized, lo: float | None = None, hi: float | None = None, y: Params | None = None
) -> Array:
    """An activation of its own."""
    return _finish(_value(x), lo, hi, y)


def flatten(x: Array) -> Array:
    """[N, C, H, W] -> [N, C*H*W]."""
    return np.ascontiguousarray(x).reshape(x.shape[0], -1) if x.size else _empty_flat(x)


def max_pool2d(
    x: Array,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil: bool = False,
) -> Array:
    """Maximum over windows of uint8 or float [N, C, H, W]; padding (0 or -inf) never wins."""
    (kh, kw), (ph, pw), (dh, dw) = pair(kernel), pair(padding), pair(dilation)
    (sh, sw) = pair(kernel if stride is None else stride)
    ho = pooled_size(x.shape[2], kh, sh, ph, dh, ceil)
    wo = pooled_size(x.shape[3], kw, sw, pw, dw, ceil)
    lowest = 0 if x.dtype == np.uint8 else -np.inf
    padded = _pad_to_cover(x, lowest, (ho, wo), (kh, kw), (sh, sw), (ph, pw), (dh, dw))
    out = np.full((*x.shape[:2], ho, wo), lowest, x.dtype)
    for r in range(kh):
        for s in range(kw):
            np.maximum(out, _tap(padded, r * dh, s * dw, ho, wo, sh, sw), out=out)
    return out


def avg_pool2d(
    x: Array | Quantized,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil: bool = False,
    include_pad: bool = True,
    divisor: int | None = None,
    y: Params | None = None,
) -> Array:
    """Mean over windows, counted as PyTorch counts them: [N, C, H, W] -> [N, C, Ho, Wo]."""
    acc, scale = _summand(x)
    (kh, kw), (ph, pw) = pair(kernel), pair(padding)
    (sh, sw) = pair(kernel if stride is None else stride)
    ho = pooled_size(acc.shape[2], kh, sh, ph, 1, ceil)
    wo = pooled_size(acc.shape[3], kw, sw, pw, 1, ceil)
    padded = _pad_to_cover(acc, 0, (ho, wo), (kh, kw), (sh, sw), (ph, pw), (1, 1))
    total = np.zeros((*acc.shape[:2], ho, wo), acc.dtype)
    for r in range(kh):
        for s in range(kw):
            total += _tap(padded, r, s, ho, wo, sh, sw)
    rows = _window_sizes(acc.shape[2], ho, kh, sh, ph, include_pad)
    cols = _window_sizes(acc.shape[3], wo, kw, sw, pw, include_pad)
    count = (
        rows[:, None] * cols[None, :] if divisor is None else np.full((ho, wo), divisor, np.int64)
    )
    return _mean(total, scale, count, y)


def adaptive_avg_pool2d(x: Array | Quantized, size: Pair, y: Params | None = None) -> Array:
    """Mean over (Ho, Wo) windows; window i spans rows floor(i*H/Ho) to ceil((i+1)*H/Ho)."""
    acc, scale = _summand(x)
    ho, wo = pair(size)
    rows, cols = adaptive_edges(acc.shape[2], ho), adaptive_edges(acc.shape[3], wo)
    total = np.zeros((*acc.shape[:2], ho, wo), acc.dtype)
    count = np.zeros((ho, wo), np.int64)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(cols):
            total[:, :, i, j] = acc[:, :, top:bottom, left:right].sum(axis=(2, 3))
            count[i, j] = (bottom - top) * (right - left)
    return _mean(total, scale, count, y)


def conv2d(
    x: Array,
    w: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> NDArray[np.float64]:
    """In float64: x [N, C, H, W], w [O, C/groups, R, S], scale, bias [O] -> [N, O, Ho, Wo]."""
    (sh, sw), (ph, pw), (dh, dw) = pair(stride), pair(padding), pair(dilation)
    n, c, h, width = x.shape
    o, i, r_count, s_count = w.shape
    if groups < 1 or c != i * groups or o % groups:
        raise UnsupportedShape(
            need(
                "C = groups * w.shape[1] and O divisible by groups in a convolution",
                f"C={c}, w {list(w.shape)}, groups={groups}",
                "Check the weight layout: [O, I, R, S].",
            )
        )
    ho, wo = conv_size(h, r_count, sh, ph, dh), conv_size(width, s_count, sw, pw, dw)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    filters = np.asarray(w, np.float64).reshape(groups, o // groups, i, r_count, s_count)
    out = np.zeros((n, groups, o // groups, ho * wo))
    for r in range(r_count):
        for s in range(s_count):
            columns = _tap(padded, r * dh, s * dw, ho, wo, sh, sw).reshape(n, groups, i, ho * wo)
            out += filters[None, :, :, :, r, s] @ columns
    return _affine(out.reshape(n, o, ho, wo), scale, bias, (1, -1, 1, 1))


def linear(
    x: Array, w: Array, scale: Array | None = None, bias: Array | None = None
) -> NDArray[np.float64]:
    """x @ w.T * scale + bias in float64: x [..., K], w [N, K] -> [..., N]."""
    out: NDArray[np.float64] = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    return _affine(out, scale, bias, (-1,))


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output length along one axis; raises UnsupportedShape when the filter does not fit."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if room < 0:
        raise UnsupportedShape(
            need(
                f"at least the {dilation * (kernel - 1) + 1} pixels that a filter spans",
                f"{size} + 2*{padding}",
                "Pad more, or use a larger image.",
            )
        )
    return room // stride + 1


def pooled_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool
) -> int:
    """Output length of a pool; with `ceil` the last window starts inside the left-padded image."""
    if not ceil:
        return conv_size(size, kernel, stride, padding, dilation)
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = -(-room // stride) + 1
    if (out - 1) * stride >= size + padding:
        out -= 1
    if out < 1:
        raise UnsupportedShape(
            need("pixels in a pooling window", f"{size} + 2*{padding}", "Use a larger image.")
        )
    return out


def pair(value: Pair) -> tuple[int, int]:
    """A number for both axes of the image, or one for each."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _centered(q: Array, zp: int) -> NDArray[np.int64]:
    return np.asarray(q).astype(np.int64) - int(zp)


def _value(operand: Array | Quantized) -> NDArray[np.float32]:
    if isinstance(operand, tuple):
        return dequantize(*operand)
    return np.asarray(operand, np.float32)


def _finish(
    out: NDArray[np.float32], lo: float | None, hi: float | None, y: Params | None
) -> Array:
    if lo is not None:
        out = np.maximum(out, np.float32(lo))
    if hi is not None:
        out = np.minimum(out, np.float32(hi))
    return out if y is None else quantize(out, *y)


def _affine(
    out: NDArray[np.float64], scale: Array | None, bias: Array | None, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    if scale is not None:
        out = out * np.asarray(scale, np.float64).reshape(shape)
    if bias is not None:
        out = out + np.asarray(bias, np.float64).reshape(shape)
    return out


def _tap(padded: Array, top: int, left: int, ho: int, wo: int, sh: int, sw: int) -> Array:
    """Input of a filter tap: every sh-th row and sw-th column from (top, left), ho x wo of them."""
    return padded[:, :, top : top + (ho - 1) * sh + 1 : sh, left : left + (wo - 1) * sw + 1 : sw]


def _pad_to_cover(
    x: Array,
    value: float,
    out: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Array:
    """Pad left and top by `padding`, right and bottom as far as the last window reaches."""
    widths = [(0, 0), (0, 0)]
    for a in range(2):
        reach = (out[a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1
        widths.append((padding[a], max(reach - padding[a] - x.shape[2 + a], 0)))
    return np.pad(x, widths, constant_values=value)


def _summand(x: Array | Quantized) -> tuple[Array, np.float32 | None]:
    """Summands of a mean: exact integers and their scale, or float64."""
    if isinstance(x, tuple):
        return _centered(x[0], x[2]), np.float32(x[1])
    return np.asarray(x, np.float64), None


def _mean(
    total: Array, scale: np.float32 | None, count: NDArray[np.int64], y: Params | None
) -> Array:
    if scale is None:
        return _finish((total / count).astype(np.float32), None, None, y)
    return _finish(total.astype(np.float32) * (scale / count.astype(np.float32)), None, None, y)


def _window_sizes(
    size: int, out: int, kernel: int, stride: int, padding: int, include_pad: bool
) -> NDArray[np.int64]:
    """Pixels a window counts on one axis: padding with include_pad, ceil mode's overhang never."""
    start = np.arange(out) * stride - padding
    end = np.minimum(start + kernel, size + padding)
    if not include_pad:
        start, end = np.maximum(start, 0), np.minimum(end, size)
    return end - start


def adaptive_edges(size: int, out: int) -> list[tuple[int, int]]:
    """First and end row of each of `out` windows that cover `size` rows, as PyTorch cuts them."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _empty_flat(x: Array) -> Array:
    return np.empty((x.shape[0], int(np.prod(x.shape[1:]))), x.dtype)

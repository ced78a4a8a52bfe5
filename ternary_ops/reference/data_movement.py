# SPDX-License-Identifier: Apache-2.0
"""References of products, functions, and of what moves or blends values without filters.

Operands and results as in `reference.arithmetic`. Moves take the plain array (codes keep their
scale and zero point).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ternary_ops.reference import activations
from ternary_ops.reference.arithmetic import Array, Params, Quantized, clamp, quantize

Sampling: TypeAlias = tuple[Array, Array, Array, Array]
Taps: TypeAlias = list[tuple[Array, Array]]  # input pixels of each output pixel, and weights


def activation(
    x: Array | Quantized, fn: str, params: Sequence[float] = (), y: Params | None = None
) -> Array:
    """A function of `reference.activations`, in float64, rounded to float32, then to u8."""
    return clamp(activations.evaluate(fn, params, clamp(x)), y=y)


def mul(
    a: Array | Quantized,
    b: Array | Quantized,
    lo: float | None = None,
    hi: float | None = None,
    y: Params | None = None,
) -> Array:
    """a * b, then the activation; axes of size 1 broadcast."""
    with np.errstate(over="ignore", invalid="ignore"):
        out = clamp(a) * clamp(b)
    return clamp(out, lo, hi, y)


def concat(parts: Sequence[Array | Quantized], y: Params | None = None, axis: int = 1) -> Array:
    """Quantized parts are requantized to y (the same codes where it is theirs)."""
    return np.concatenate([clamp(part, y=y) for part in parts], axis)


def rearrange(x: Array, sizes: Sequence[int], order: Sequence[int], axes: Sequence[int]) -> Array:
    """Numbers moved among the axes behind the batch.

    sizes: of the factors of all of x's axes in a row; order: the factors' new order; axes: how many
    of these make each axis of the result.
    """
    factors = x.reshape(len(x), *sizes).transpose(0, *(i + 1 for i in order))
    out = factors.reshape(len(x), *joined(factors.shape[1:], axes))
    return np.ascontiguousarray(out)


def joined(sizes: Sequence[int], axes: Sequence[int]) -> list[int]:
    """Sizes of axes that are made of so many factors each."""
    ends = np.cumsum([0, *axes])
    return [math.prod(sizes[a:b]) for a, b in zip(ends, ends[1:], strict=False)]


def crop(
    x: Array, begin: Sequence[int], end: Sequence[int], step: Sequence[int] | None = None
) -> Array:
    """Every step-th number of the axes behind the channels, without so many at either end."""
    steps = step or [1] * len(begin)
    kept = [
        slice(b, size - e, s) for b, e, s, size in zip(begin, end, steps, x.shape[2:], strict=True)
    ]
    return np.ascontiguousarray(x[(slice(None), slice(None), *kept)])


def pad(
    x: Array | Quantized,
    before: Sequence[int],
    after: Sequence[int],
    mode: str = "constant",
    value: float | None = 0.0,
) -> Array:
    """PyTorch's F.pad of the axes behind the channels; value None stands for minus infinity, and of
    codes the code of the value is put around.
    """
    array = x[0] if isinstance(x, tuple) else np.asarray(x, np.float32)
    width = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    if mode != "constant":
        by = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
        moved: Array = np.pad(array, width, by)  # type: ignore[call-overload]
        return moved
    filling: Any = np.float32(-np.inf if value is None else value)
    if isinstance(x, tuple):
        filling = quantize(filling, *x[1:])
    return np.pad(array, width, constant_values=filling)


def pixel_shuffle(x: Array, factor: tuple[int, int], crop: tuple[int, int] = (0, 0)) -> Array:
    """[N, C*R*S, H, W] -> [N, C, H*R - crop, W*S - crop]; the crop is at the bottom and right."""
    (r, s), (n, c, h, w) = factor, x.shape
    out = x.reshape(n, c // (r * s), r, s, h, w).transpose(0, 1, 4, 2, 5, 3)
    out = out.reshape(n, c // (r * s), h * r, w * s)
    return np.ascontiguousarray(out[:, :, : h * r - crop[0], : w * s - crop[1]])


def pixel_unshuffle(x: Array, factor: tuple[int, int]) -> Array:
    """The inverse: [N, C, H*R, W*S] -> [N, C*R*S, H, W]."""
    (r, s), (n, c, h, w) = factor, x.shape
    out = x.reshape(n, c, h // r, r, w // s, s).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(out.reshape(n, c * r * s, h // r, w // s))


def channel_shuffle(x: Array, groups: int) -> Array:
    """Channel k of group g becomes channel k * groups + g."""
    n, c, *image = x.shape
    out = x.reshape(n, groups, c // groups, *image).swapaxes(1, 2)
    return np.ascontiguousarray(out.reshape(x.shape))


def resize(
    x: Array | Quantized,
    size: tuple[int, int],
    mode: str,
    align: bool = False,
    zoom: tuple[float, float] | None = None,
) -> Array:
    """PyTorch's interpolate to `size`: "nearest", "nearest-exact", "bilinear" or "bicubic"; `zoom`
    is its scale_factor.

    Codes are blended as q - zp in float32, rounded half to even, and keep scale and zero point.
    """
    array = x[0] if isinstance(x, tuple) else np.asarray(x, np.float32)
    ratios = [sampling_ratio(i, o, align, z) for i, o, z in _axes(array, size, zoom)]
    if mode in ("nearest", "nearest-exact"):
        rows, cols = (
            nearest_positions(i, o, r, mode == "nearest-exact")
            for (i, o, _), r in zip(_axes(array, size, zoom), ratios, strict=True)
        )
        return np.ascontiguousarray(array[:, :, rows][:, :, :, cols])
    zp = x[2] if isinstance(x, tuple) else 0
    steps = array.astype(np.float32) - np.float32(zp)
    taps = _bilinear_taps if mode == "bilinear" else cubic_taps
    down, along = (
        taps(i, o, r, align) for (i, o, _), r in zip(_axes(array, size, zoom), ratios, strict=True)
    )
    blended = [_blended([w * steps[:, :, y][:, :, :, x] for x, w in along]) for y, _ in down]
    out = _blended([w[:, None] * line for (_, w), line in zip(down, blended, strict=True)])
    return quantize(out, 1.0, zp) if isinstance(x, tuple) else out


def _blended(terms: Sequence[Array]) -> Array:
    """Their sum, from the first to the last, in their own precision."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _bilinear_taps(size: int, out: int, ratio: np.float32, align: bool) -> Taps:
    first, second, w0, w1 = bilinear_positions(size, out, ratio, align)
    return [(first, w0), (second, w1)]


def cubic_taps(size: int, out: int, ratio: np.float32, align: bool) -> Taps:
    """Four input pixels of each output pixel and their weights, PyTorch's with a = -0.75, in
    float32; pixels outside repeat the border.
    """
    a, half, one = np.float32(-0.75), np.float32(0.5), np.float32(1)
    index = np.arange(out, dtype=np.float32)
    at = index * ratio if align else (index + half) * ratio - half
    whole = np.floor(at)
    t = at - whole
    rest = one - t

    def near(x: Array) -> Array:
        made: Array = ((a + np.float32(2)) * x - (a + np.float32(3))) * x * x + one
        return made

    def far(x: Array) -> Array:
        five, eight, four = (np.float32(n) * a for n in (5, 8, 4))
        made: Array = ((a * x - five) * x + eight) * x - four
        return made

    weights = far(t + one), near(t), near(rest), far(rest + one)
    first = whole.astype(np.int64) - 1
    return [(np.clip(first + k, 0, size - 1), w) for k, w in enumerate(weights)]


def sampling_ratio(size: int, out: int, align: bool, zoom: float | None) -> np.float32:
    """Input pixels per output pixel along one axis."""
    if align:
        return np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
    return np.float32(1 / zoom) if zoom is not None else np.float32(size) / np.float32(out)


def nearest_positions(size: int, out: int, ratio: np.float32, exact: bool = False) -> Array:
    """The input pixel of each output pixel's beginning, or, `exact`, of its middle."""
    index = np.arange(out, dtype=np.float32) + np.float32(0.5 if exact else 0)
    at: Array = np.floor(index * ratio).astype(np.int64)
    return at.clip(max=size - 1)


def bilinear_positions(size: int, out: int, ratio: np.floating[Any], align: bool) -> Sampling:
    """Both input pixels of each output pixel and their weights, in the precision of the ratio.

    The one rule of every bilinear resize in Python; programs and kernels compute it in float32
    (`csrc/tensor/interpolation.cpp`).
    """
    half, zero, one = (ratio.dtype.type(number) for number in (0.5, 0, 1))
    at = np.arange(out, dtype=ratio.dtype)
    at = at * ratio if align else np.maximum((at + half) * ratio - half, zero)
    first = np.minimum(at.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    share = np.clip(at - first.astype(ratio.dtype), zero, one)
    return first, second, one - share, share


def _axes(
    x: Array, size: tuple[int, int], zoom: tuple[float, float] | None
) -> list[tuple[int, int, float | None]]:
    zooms = (None, None) if zoom is None else zoom
    return list(zip(x.shape[2:], size, zooms, strict=True))

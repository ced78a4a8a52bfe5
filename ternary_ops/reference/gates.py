# SPDX-License-Identifier: Apache-2.0
"""References of the attention of super-resolution networks, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ternary_ops.reference.activations import FUNCTIONS
from ternary_ops.reference.arithmetic import Array, Pair, conv2d, max_pool2d
from ternary_ops.reference.data_movement import bilinear_positions

# The pooled map of ESA: a convolution of stride 2 without padding, then a pool of 7 and stride 3.
POOL, POOL_STRIDE = 7, 3


def sr_gate(
    x: Array,
    gate: Array,
    low: Array | None = None,
    residual: Array | None = None,
    offset: float = 0.0,
    image: tuple[int, int] | None = None,
    origin: tuple[int, int] = (0, 0),
) -> Array:
    """x * (sigmoid(gate + low, interpolated) - offset) + residual; see ops.sr_gate."""
    total = np.asarray(gate, np.float64)
    if low is not None:
        total = total + bilinear_crop(low, image or x.shape[2:], origin, x.shape[2:])
    out: Array = np.asarray(x, np.float64) * (FUNCTIONS["sigmoid"].value(total) - offset)
    return out if residual is None else out + np.asarray(residual, np.float64)


def bilinear_crop(
    low: Array, image: Sequence[int], origin: Sequence[int], size: Sequence[int]
) -> Array:
    """low [N, C, h, w] over an image, bilinear, of which a crop of `size` at `origin` is kept."""
    out = np.asarray(low, np.float64)
    for axis in (2, 3):
        cells, pixels = low.shape[axis], int(image[axis - 2])
        ratio = np.float32(cells) / np.float32(pixels)
        begin = origin[axis - 2]
        part = slice(begin, begin + size[axis - 2])
        first, second, a, b = (t[part] for t in bilinear_positions(cells, pixels, ratio, False))
        shape = [-1 if d == axis else 1 for d in range(4)]
        above, below = out.take(first, axis), out.take(second, axis)
        out = (
            a.astype(np.float64).reshape(shape) * above
            + b.astype(np.float64).reshape(shape) * below
        )
    return out


def hf_attention(
    x: Array, weights: Sequence[Array], biases: Sequence[Array], slopes: Sequence[float]
) -> Array:
    """See ops.hf_attention."""
    y = np.asarray(x, np.float64)
    for w, b, slope in zip(weights, biases, [*slopes, 1.0], strict=True):
        y = _conv(y, w, b)
        y = np.where(y < 0, slope * y, y)
    return sr_gate(x, y)


def esa(x: Array, weights: Sequence[Array], biases: Sequence[Array]) -> Array:
    """See ops.esa."""
    parts = list(zip(weights, biases, strict=True))
    c1 = _conv(np.asarray(x, np.float64), *parts[0])
    v = max_pool2d(_conv(c1, *parts[2], stride=2, padding=0), POOL, POOL_STRIDE)
    for w, b in parts[3:-2]:
        v = np.maximum(_conv(v, w, b), 0)
    v = _conv(v, *parts[-2])
    v = bilinear_crop(v, x.shape[2:], (0, 0), x.shape[2:])
    return sr_gate(x, _conv(v + _conv(c1, *parts[1]), *parts[-1]))


def _conv(x: Array, w: Array, b: Array, stride: Pair = 1, padding: int | None = None) -> Array:
    wide = np.asarray(w, np.float64)
    same = (w.shape[2] // 2, w.shape[3] // 2)
    out = conv2d(x, wide, None, None, stride, same if padding is None else padding)
    return np.asarray(out, np.float64) + np.asarray(b, np.float64)[:, None, None]

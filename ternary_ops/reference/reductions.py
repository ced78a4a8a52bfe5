# SPDX-License-Identifier: Apache-2.0
"""References of what sums over numbers of values alone: reductions, normalizations, products of two
values. Channels are axis 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.reference.activations import exp32, fused32
from ternary_ops.reference.arithmetic import (
    Array,
    Pair,
    Params,
    Quantized,
    adaptive_edges,
    pair,
    quantize,
)

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
}


def reduce(x: Array, fn: str, axes: Sequence[int]) -> Array:
    """A function of REDUCTIONS along axes, which keep the size 1: of floats in float64, rounded
    once; of uint8 "max" and "min".
    """
    wide = x if x.dtype == np.uint8 else np.asarray(x, np.float64)
    out: Array = REDUCTIONS[fn](wide, axis=tuple(axes), keepdims=True)
    return out if x.dtype == np.uint8 else out.astype(np.float32)


def adaptive_max_pool2d(x: Array, size: Pair) -> Array:
    """Maximum over the windows of adaptive_avg_pool2d, of codes or floats."""
    rows, cols = (adaptive_edges(a, b) for a, b in zip(x.shape[2:], pair(size), strict=True))
    out = np.empty((*x.shape[:2], len(rows), len(cols)), x.dtype)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(cols):
            out[:, :, i, j] = x[:, :, top:bottom, left:right].max(axis=(2, 3))
    return out


def softmax(x: Array, groups: int = 1) -> NDArray[np.float64]:
    """Over the channels of each group, in float64."""
    split = np.asarray(x, np.float64).reshape(x.shape[0], groups, -1, *x.shape[2:])
    grown = np.exp(split - split.max(axis=2, keepdims=True))
    out: NDArray[np.float64] = grown / grown.sum(axis=2, keepdims=True)
    return out.reshape(x.shape)


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """Over channels, in float64: (x - mean) / sqrt(var + eps) * weight + bias."""
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    wide = np.asarray(x, np.float64)
    centered = wide - wide.mean(axis=1, keepdims=True)
    out: Array = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + eps)
    out = out * np.asarray(weight, np.float64).reshape(per_channel)
    if bias is not None:
        out = out + np.asarray(bias, np.float64).reshape(per_channel)
    return out


def layer_norm_codes(
    x: Array, weight: Array, bias: Array | None, eps: float, y: Params
) -> NDArray[np.uint8]:
    """layer_norm as codes: step by step as the kernels compute it in float32
    (csrc/kernels/layer_norm.inl), since codes are exact.
    """
    values = np.asarray(x, np.float32)
    count = np.float32(x.shape[1])
    about = _by_blocks(values, lambda sums, v: sums + v) / count
    off = values - about[:, None]
    rest = _by_blocks(off, lambda sums, v: sums + v) / count
    square = _by_blocks(off, lambda sums, v: fused32(v, v, sums)) / count
    variance = np.maximum(np.float32(0), square - rest * rest) + np.float32(eps)
    factor = np.float32(1) / np.sqrt(variance)
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    beside = np.zeros_like(weight) if bias is None else bias
    scaled = (off - rest[:, None]) * factor[:, None]
    made = fused32(scaled, weight.reshape(per_channel), beside.reshape(per_channel))
    return quantize(made, *y)


def _by_blocks(x: Array, add: Callable[[Array, Array], Array]) -> NDArray[np.float32]:
    """Over channels, in blocks of 32."""
    sums = np.zeros(np.delete(x.shape, 1), np.float32)
    for first in range(0, x.shape[1], 32):
        part = np.zeros_like(sums)
        for c in range(first, min(first + 32, x.shape[1])):
            part = add(part, x[:, c]).astype(np.float32)
        sums = sums + part
    return sums


def attention(
    q: Array, k: Array, v: Array, bias: Array | None = None, *, heads: int, scale: float
) -> NDArray[np.float32]:
    """softmax(scale * q . k + bias) . v of each head, in float64, rounded once.

    q [N, H*K, L], k [N, H*K, M], v [N, H*D, M], bias [N, H*M, L] to [N, H*D, L].
    """
    parts = (np.asarray(x, np.float64).reshape(len(x), heads, -1, x.shape[2]) for x in (q, k, v))
    queries, keys, values = parts
    scores = scale * np.matmul(keys.swapaxes(2, 3), queries)
    if bias is not None:
        scores = scores + np.asarray(bias, np.float64).reshape(scores.shape)
    grown = np.exp(scores - scores.max(axis=2, keepdims=True))
    out = np.matmul(values, grown / grown.sum(axis=2, keepdims=True))
    rounded: NDArray[np.float32] = out.reshape(len(q), -1, q.shape[2]).astype(np.float32)
    return rounded


def attention_codes(
    q: Quantized,
    k: Quantized,
    v: Quantized,
    bias: Array | None = None,
    *,
    heads: int,
    scale: float,
    y: Params | None,
) -> Array:
    """`attention` of codes: exact integer sums, between them float32 steps and shares in 0..254.

    Each share is rounded with what the one before it was rounded by.
    """
    n, _, keys = k[0].shape
    queries = _by_head(q[0], heads) - q[2]
    # float64 adds products of bytes exactly.
    sums = np.matmul((_by_head(k[0], heads) - 128).swapaxes(2, 3), queries)
    factor = np.float32(np.float64(scale) * np.float64(q[1]) * np.float64(k[1]))
    scores = sums.astype(np.float32) * factor
    if bias is not None:
        scores = scores + np.asarray(bias, np.float32).reshape(scores.shape)
    least = np.float32(-86)
    grown = exp32(np.maximum(scores - scores.max(axis=2, keepdims=True), least))
    shares = np.empty(grown.shape)
    carry = np.zeros(grown[:, :, 0].shape, np.float32)
    for m in range(keys):
        share = grown[:, :, m] * np.float32(254) + carry
        shares[:, :, m] = np.rint(share)
        carry = share - np.rint(share)
    total = shares.sum(axis=2, keepdims=True)
    made = np.matmul(_by_head(v[0], heads) - v[2], shares).astype(np.float32)
    out = made * (np.float32(v[1]) / total.astype(np.float32))
    out = out.reshape(n, -1, q[0].shape[2])
    return out if y is None else quantize(out, *y)


def _by_head(codes: Array, heads: int) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = codes.astype(np.float64)
    return wide.reshape(len(codes), heads, -1, codes.shape[2])


def matmul(a: Array, b: Array, groups: int, transpose: bool, scale: float) -> NDArray[np.float32]:
    """scale * a product of tokens for each group, in float64, rounded once.

    transpose: a [N, G*K, L], b [N, G*K, M] to [N, G*M, L], sums over K. Otherwise a [N, G*M, L],
    b [N, G*D, M] to [N, G*D, L], sums over M.
    """
    n, channels, tokens = b.shape
    left = np.asarray(a, np.float64).reshape(n, groups, -1, a.shape[2])
    right = np.asarray(b, np.float64).reshape(n, groups, channels // groups, tokens)
    out = scale * np.matmul(right.swapaxes(2, 3) if transpose else right, left)
    rounded: NDArray[np.float32] = out.reshape(n, -1, a.shape[2]).astype(np.float32)
    return rounded

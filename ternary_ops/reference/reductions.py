# SPDX-License-Identifier: Apache-2.0
"""References of what sums over numbers of values alone: reductions, normalizations, products of two
values. Channels are axis 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.reference.arithmetic import Array, Pair, adaptive_edges, pair

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

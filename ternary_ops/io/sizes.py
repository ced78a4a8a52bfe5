# SPDX-License-Identifier: Apache-2.0
"""Bytes of a file beside float32, plain 2-bit codes and the entropy bound. Without torch."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops import _native
from ternary_ops.errors import UnsupportedShape, need
from ternary_ops.io.container import Document

PATTERNS = ("element", "1x4")
_BITS = {"ternary": 2, "int8": 8}


@dataclass(frozen=True)
class Sizes:
    """Bytes of the same weights in four forms; floats and raw data count as they are in each.

    float32  4 bytes a ternary or int8 weight
    dense    2 bits a ternary weight, 8 an int8 weight
    file     the file as it lies on disk
    bound    the least an entropy coder without context can reach, see entropy_bound
    """

    float32: int
    dense: int
    file: int
    bound: float


def sizes(document: Document) -> Sizes:
    """The four forms of a file that was read; a ternary tensor's bound is the lower pattern's."""
    float32 = dense = 0
    bound = 0.0
    for entry in document.weights.values():
        values = entry.array
        if entry.kind not in _BITS:
            float32 += values.nbytes
            dense += values.nbytes
            bound += values.nbytes
            continue
        float32 += 4 * values.size
        dense += -(-values.size * _BITS[entry.kind] // 8)
        bound += lowest_bound(entry.kind, values) / 8
    return Sizes(float32, dense, document.size, bound)


def entropy_bound(codes: NDArray[np.int8], pattern: str) -> float:
    """Bits an entropy coder without context needs for int8 [..., I], from their own frequencies.

    "element": zero-order entropy of the values. "1x4": H2(d) a quad and the zero-order entropy of
    the values inside occupied quads, d = share of occupied quads; with four values to every quad
    that is H2(d)/4 + d*h bits a weight. A coder that learns from neighbors may do better.
    """
    codes = np.asarray(codes)
    if pattern not in PATTERNS or codes.ndim == 0:
        what = f"for entropy_bound arrays [..., I] and a pattern of {PATTERNS}"
        raise UnsupportedShape(need(what, f"{codes.ndim} axes, {pattern!r}", "Pass such."))
    if pattern == "element" or codes.size == 0:
        return _bits(codes)
    rows = codes.reshape(-1, codes.shape[-1])
    starts = np.arange(0, rows.shape[1], 4)
    occupied = np.logical_or.reduceat(rows != 0, starts, axis=1)
    inside = rows[np.repeat(occupied, 4, axis=1)[:, : rows.shape[1]]]
    return _bits(occupied) + _bits(inside)


def lowest_bound(kind: str, values: NDArray[Any]) -> float:
    """Bits for a weight: the lower pattern's bound if ternary, "element" if int8, else as it is."""
    if kind not in _BITS:
        return 8.0 * values.nbytes
    patterns = PATTERNS if kind == "ternary" else ("element",)
    return min(entropy_bound(values, pattern) for pattern in patterns)


def general_compressors(
    weights: Iterable[tuple[str, NDArray[Any]]], vectors: Iterable[NDArray[Any]]
) -> dict[str, int]:
    """Bytes that gzip (level 9) and xz (preset 9) make of plain storage, all of it as one stream.

    weights: kind and values [..., I]: ternary ones become 2-bit codes, others stay. vectors: what
    goes with them, as it is.
    """
    parts = [
        _native.core().pack_codes(np.ascontiguousarray(values, np.int8)).tobytes()
        if kind == "ternary"
        else values.tobytes()
        for kind, values in weights
    ]
    stream = b"".join([*parts, *(v.tobytes() for v in vectors)])
    return {
        "gzip": len(gzip.compress(stream, 9, mtime=0)),
        "xz": len(lzma.compress(stream, preset=9)),
    }


def _bits(values: NDArray[Any]) -> float:
    """Zero-order entropy of all one-byte values together, in bits."""
    counts = np.bincount(values.reshape(-1).view(np.uint8))
    counts = counts[counts > 0]
    return float((counts * np.log2(values.size / counts)).sum())

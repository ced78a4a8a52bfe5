# SPDX-License-Identifier: Apache-2.0
"""The storage formats written out, bit by bit: proof that a decoder gets by with what the formulas
of io/storage_formats.py count. A header (shape, dtype, number of entries, b) is passed beside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.io.storage_formats import VALUE_BITS, bits, occupied, padded_bits, reach

Array = NDArray[Any]


class Writer:
    """Numbers of any width, one behind the other."""

    def __init__(self) -> None:
        self.parts: list[Array] = []

    def put(self, numbers: Any, width: int) -> None:
        numbers = np.asarray(numbers, np.uint64).reshape(-1, 1)
        assert width == 64 or (numbers < 2**width).all()
        shifts = np.arange(width, dtype=np.uint64)[::-1]
        self.parts.append(((numbers >> shifts) & np.uint64(1)).astype(np.uint8).reshape(-1))

    def bytes(self) -> bytes:
        return np.packbits(np.concatenate([*self.parts, np.zeros(0, np.uint8)])).tobytes()


class Reader:
    """The inverse of Writer."""

    def __init__(self, data: bytes) -> None:
        self.bits, self.at = np.unpackbits(np.frombuffer(data, np.uint8)), 0

    def get(self, count: int, width: int) -> Array:
        part = self.bits[self.at : self.at + count * width].reshape(count, width)
        self.at += count * width
        shifts = np.arange(width, dtype=np.uint64)[::-1]
        return (part.astype(np.uint64) << shifts).sum(1, dtype=np.uint64).astype(np.int64)


def to_words(kind: str, values: Array, full: bool = False) -> Array:
    """Values as unsigned numbers of VALUE_BITS."""
    if kind == "ternary":
        return values.astype(np.int64) % 4 if full else (values < 0).astype(np.int64)
    return values.view(np.uint8 if kind == "int8" else np.uint32).astype(np.int64)


def from_words(kind: str, words: Array, full: bool = False) -> Array:
    if kind == "ternary":
        return (
            np.where(words == 3, -1, words).astype(np.int8)
            if full
            else (1 - 2 * words).astype(np.int8)
        )
    if kind == "int8":
        return words.astype(np.uint8).view(np.int8)
    return words.astype(np.uint32).view(np.float32)


def encode(name: str, kind: str, values: Array) -> tuple[bytes, dict[str, Any]]:
    """The bytes, and what a header would say."""
    bare, full = VALUE_BITS[kind]
    used, out = occupied(values), Writer()
    flat = values.reshape(-1)
    at = np.flatnonzero(used)
    about: dict[str, Any] = {"shape": values.shape, "m": len(at)}
    words = to_words(kind, np.ascontiguousarray(flat[at]))
    gaps = np.diff(at, prepend=-1)
    if name == "dense":
        out.put(to_words(kind, flat, full=True), full)
    elif name == "bitmap":
        out.put(used, 1)
        out.put(words, bare)
    elif name == "coo":
        out.put(at, bits(flat.size))
        out.put(words, bare)
    elif name == "delta":
        about["largest"] = int(gaps.max(initial=1))
        out.put(gaps - 1, bits(about["largest"]))
        out.put(words, bare)
    elif name == "padded_delta":
        b = min(range(1, max(bits(flat.size), 1) + 1), key=lambda b: padded_bits(kind, gaps, b))
        about["b"], about["entries"] = b, _put_padded(out, kind, gaps, words, b)
    elif name in ("csr", "csc"):
        matrix = values.reshape(len(values), -1)
        matrix = np.ascontiguousarray(matrix.T) if name == "csc" else matrix
        used = occupied(matrix)
        out.put(np.nonzero(used)[1], bits(matrix.shape[1]))
        out.put(to_words(kind, np.ascontiguousarray(matrix[used])), bare)
        out.put(np.cumsum(used.sum(1)), bits(len(at) + 1))
    elif name == "blocked":
        quads = _quads(values)
        numbers = np.flatnonzero(occupied(quads).any(1))
        about["quads"] = len(numbers)
        out.put(numbers, bits(len(quads)))
        out.put(to_words(kind, quads[numbers].reshape(-1), full=True), full)
    return out.bytes(), about


def decode(name: str, kind: str, data: bytes, about: dict[str, Any]) -> Array:
    """The values again."""
    bare, full = VALUE_BITS[kind]
    shape, m, source = about["shape"], about["m"], Reader(data)
    flat = np.zeros(int(np.prod(shape)), np.float32 if kind == "float" else np.int8)
    if name == "dense":
        return from_words(kind, source.get(flat.size, full), full=True).reshape(shape)
    if name == "bitmap":
        at = np.flatnonzero(source.get(flat.size, 1))
    elif name == "coo":
        at = source.get(m, bits(flat.size))
    elif name == "delta":
        at = np.cumsum(source.get(m, bits(about["largest"])) + 1) - 1
    elif name == "padded_delta":
        return _padded(source, kind, about, flat).reshape(shape)
    elif name in ("csr", "csc"):
        matrix = flat.reshape(shape[0], -1)
        matrix = np.ascontiguousarray(matrix.T) if name == "csc" else matrix
        inside, words = source.get(m, bits(matrix.shape[1])), source.get(m, bare)
        ends = source.get(len(matrix), bits(m + 1))
        matrix[np.repeat(np.arange(len(matrix)), np.diff(ends, prepend=0)), inside] = from_words(
            kind, words
        )
        return np.ascontiguousarray(matrix.T if name == "csc" else matrix).reshape(shape)
    else:
        quads = _quads(flat.reshape(shape))
        numbers = source.get(about["quads"], bits(len(quads)))
        quads[numbers] = from_words(kind, source.get(4 * len(numbers), full), full=True).reshape(
            -1, 4
        )
        return quads.reshape(-1, -(-shape[-1] // 4) * 4)[:, : shape[-1]].reshape(shape)
    flat[at] = from_words(kind, source.get(m, bare))
    return flat.reshape(shape)


def _quads(values: Array) -> Array:
    rows = values.reshape(-1, values.shape[-1])
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).reshape(-1, 4)


def _put_padded(out: Writer, kind: str, gaps: Array, words: Array, b: int) -> int:
    entries = 0
    for gap, word in zip(gaps.tolist(), words.tolist(), strict=True):
        pads, rest = divmod(gap - 1, reach(kind, b))
        for _ in range(pads):
            out.put(2**b - 1, b)
            if kind != "ternary":
                out.put(0, VALUE_BITS[kind][0])
        out.put(rest, b)
        out.put(word, VALUE_BITS[kind][0])
        entries += pads + 1
    return entries


def _padded(source: Reader, kind: str, about: dict[str, Any], flat: Array) -> Array:
    b, at = about["b"], -1
    for _ in range(about["entries"]):
        zeros = int(source.get(1, b)[0])
        if kind == "ternary" and zeros == 2**b - 1:
            at += zeros
            continue
        at += zeros + 1
        flat[at] = from_words(kind, source.get(1, VALUE_BITS[kind][0]))[0]
    return flat

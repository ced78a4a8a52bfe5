# SPDX-License-Identifier: Apache-2.0
"""NumPy twins of the inline PTX in kernels/, for interpreter.py.

Twins see elements, whatever `pack` is: Triton packs elements into registers only when it compiles.
Registers have 32 bits, elements may have fewer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Function = Callable[..., Any]

_twins: dict[str, Callable[..., Array | tuple[Array, ...]]] = {}
_AND = (
    r"(?:\{ \.reg \.b32 (\w+); shl\.b32 \1, \$1, (\d+); and\.b32 \$0, \1, (\w+); \}"
    r"|and\.b32 \$0, \$1, (\w+);)"
)
_LOP3 = r"lop3\.b32 \$0, (\$?\w+), (\$?\w+), (\$?\w+), (\w+);"


def twin(asm: str) -> Callable[[Function], Function]:
    """Registers a NumPy function of arrays as what the text computes, spacing aside."""

    def register(function: Function) -> Function:
        _twins[" ".join(asm.split())] = function
        return function

    return register


@twin("dp4a.s32.s32 $0, $1, $2, $3;")
def _dp4a(a: Array, b: Array, sums: Array) -> Array:
    left, right = (x.view(np.int8).reshape(*x.shape, 4).astype(np.int32) for x in (a, b))
    return sums.view(np.int32) + (left * right).sum(-1, dtype=np.int32)


@twin("{ .reg .s32 t; cvt.rni.s32.f32 t, $1; add.s32 t, t, $2; min.u32 $0, t, 255; }")
def _code(x: Array, zero_point: Array) -> Array:
    whole = np.where(np.isnan(x), 0.0, np.rint(x.astype(np.float64))).clip(-(2**31), 2**31 - 1)
    return np.minimum((whole.astype(np.int64) + zero_point).astype(np.uint32), 255).view(np.int32)


@twin(
    "{ .reg .b32 t, u, v, w; prmt.b32 t, $4, $5, 0x5140; prmt.b32 u, $4, $5, 0x7362;"
    " prmt.b32 v, $6, $7, 0x5140; prmt.b32 w, $6, $7, 0x7362; prmt.b32 $0, t, v, 0x5410;"
    " prmt.b32 $1, t, v, 0x7632; prmt.b32 $2, u, w, 0x5410; prmt.b32 $3, u, w, 0x7632; }"
)
def _turned8(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, ...]:
    t, u = _prmt(a, b, 0x5140), _prmt(a, b, 0x7362)
    v, w = _prmt(c, d, 0x5140), _prmt(c, d, 0x7362)
    return tuple(_prmt(*pair, bytes_) for pair in ((t, v), (u, w)) for bytes_ in (0x5410, 0x7632))


@twin("prmt.b32 $0, $2, $3, 0x5410; prmt.b32 $1, $2, $3, 0x7632;")
def _turned16(a: Array, b: Array) -> tuple[Array, ...]:
    return _prmt(a, b, 0x5410), _prmt(a, b, 0x7632)


def _prmt(a: Array, b: Array, selector: int) -> Array:
    """Bytes of the pair (b, a) that the selector's four digits name, the lowest first."""
    both = a.view(np.uint32).astype(np.uint64) | b.view(np.uint32).astype(np.uint64) << np.uint64(
        32
    )
    result = np.zeros_like(both)
    for place in range(4):
        byte = np.uint64(8 * (selector >> 4 * place & 7))
        result |= (both >> byte & np.uint64(255)) << np.uint64(8 * place)
    return result.astype(np.uint32).view(np.int32)


def _immediate(word: str, like: Array) -> Array:
    """The number as each element of a register meets it."""
    bits, value = like.dtype.itemsize * 8, int(word, 0)
    element = value & ((1 << bits) - 1)
    if bits < 32 and element * (0xFFFFFFFF // ((1 << bits) - 1)) != value:
        raise ValueError(f"{word} is not the same for every element of {bits} bits")
    return like.dtype.type(element)


def _shifted_and(x: Array, _register: str, shift: str, mask: str, mask_alone: str) -> Array:
    bits, places = _immediate(mask or mask_alone, x), int(shift or 0)
    if x.itemsize < 4 and int(bits) & ((1 << places) - 1):
        raise ValueError(f"the mask {mask} keeps bits shifted in from another element")
    return (x.astype(np.uint64) << np.uint64(places)).astype(x.dtype) & bits


def _lop3(*given: Any) -> Array:
    inputs, words, table = given[:-4], given[-4:-1], int(given[-1], 0)
    a, b, c = (inputs[int(w[1:]) - 1] if w[0] == "$" else _immediate(w, inputs[0]) for w in words)
    result = np.zeros_like(inputs[0])
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def run_twin(asm: str, inputs: list[Array]) -> tuple[Array, ...]:
    """What a text computes of its inputs; NotImplementedError without a twin."""
    if asm in _twins:
        results = _twins[asm](*inputs)
        return results if isinstance(results, tuple) else (results,)
    for pattern, function in ((_AND, _shifted_and), (_LOP3, _lop3)):
        if found := re.fullmatch(pattern, asm):
            return (function(*(x.view(f"u{x.itemsize}") for x in inputs), *found.groups()),)
    raise NotImplementedError(f"no twin of this inline PTX: {asm}")

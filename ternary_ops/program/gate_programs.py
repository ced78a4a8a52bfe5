# SPDX-License-Identifier: Apache-2.0
"""Attention blocks of super-resolution networks as small float programs, for operators."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.program import Program
from ternary_ops.program.weight import Array, Weight

_MOST = 32  # programs kept; one is about as large as its weights, twice
_kept: OrderedDict[bytes, Program] = OrderedDict()
_lock = threading.Lock()


def hf_attention(
    weights: Sequence[Array], biases: Sequence[Array], slopes: Sequence[float]
) -> Program:
    """The program of ops.hf_attention, for weights [O, I, R, S] float32."""

    def make() -> Graph:
        nodes = [Node("input", (), {"c": weights[0].shape[1]})]
        banks = []
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            last = i == len(weights) - 1
            banks.append(_bank(i, w, b, None if last else slopes[i]))
            inputs = (i, 0) if last else (i,)
            nodes.append(_same(inputs, i, w, gate=last))
        return Graph(tuple(nodes), tuple(banks))

    return _program(b"hf", [*weights, *biases, np.array(slopes)], weights[0].shape[1], make)


def esa(weights: Sequence[Array], biases: Sequence[Array]) -> Program:
    """The program of ops.esa, for weights [O, I, R, S] float32."""

    def make() -> Graph:
        banks = [_bank(i, w, b) for i, (w, b) in enumerate(zip(weights, biases, strict=True))]
        nodes = [Node("input", (), {"c": weights[0].shape[1]}), _same((0,), 0, weights[0])]
        nodes.append(Node("conv2d", (1,), {"w": 2, "stride": (2, 2)}))
        nodes.append(Node("max_pool2d", (2,), {"kernel": (7, 7), "stride": (3, 3)}))
        for i in range(3, len(weights) - 1):
            bound = None if i == len(weights) - 2 else 0.0
            nodes.append(_same((i,), i, weights[i], clamp=(bound, None)))
        small = len(nodes) - 1
        nodes.append(Node("resize", (small, 1), {"mode": "bilinear"}))
        nodes.append(_same((1, small + 1), 1, weights[1]))
        nodes.append(_same((small + 2, 0), len(weights) - 1, weights[-1], gate=True))
        return Graph(tuple(nodes), tuple(banks))

    return _program(b"esa", [*weights, *biases], weights[0].shape[1], make)


def _bank(index: int, w: Array, b: Array, slope: float | None = None) -> Weight:
    slopes = None if slope is None or slope == 1.0 else np.array([slope], np.float32)
    values = np.ascontiguousarray(w.transpose(0, 2, 3, 1), np.float32)
    return Weight(str(index), "float", values, bias=np.asarray(b, np.float32), slope=slopes)


def _same(
    inputs: tuple[int, ...],
    w: int,
    weight: Array,
    gate: bool = False,
    clamp: tuple[float | None, float | None] = (None, None),
) -> Node:
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return Node("conv2d", inputs, {"w": w, "padding": padding, "gate": gate, "clamp": clamp})


def _program(
    kind: bytes, arrays: Sequence[Array], channels: int, make: Callable[[], Graph]
) -> Program:
    """Kept by content: a weight that was changed in place is another key, and no tensor is held."""
    digest = hashlib.blake2b(kind, digest_size=16)
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    key = digest.digest()
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    program = Program(make(), (1, channels, 32, 32))
    with _lock:
        _kept[key] = program
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
    return program

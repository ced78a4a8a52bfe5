# SPDX-License-Identifier: Apache-2.0
"""Scales, biases and slopes with fewer digits: in a small network's file they weigh a fifth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ternary_ops.program.graph import Graph
from ternary_ops.program.weight import Array, Weight

# Those of bfloat16: a relative error of at most 2**-8, beside activations of 8 bits.
_BITS = 8


def round_vectors(graph: Graph) -> Graph:
    """A graph whose integer weights have scales, biases and slopes of 8 significant bits."""
    return replace(graph, weights=tuple(map(_short, graph.weights)))


def _short(w: Weight) -> Weight:
    if w.kind == "float":
        return w
    return replace(w, scale=_rounded(w.scale), bias=_rounded(w.bias), slope=_rounded(w.slope))


def _rounded(values: Array | None) -> Array | None:
    if values is None:
        return None
    # In float64 nothing else is rounded; ties go to even, as everywhere here.
    mantissa, exponent = np.frexp(values.astype(np.float64))
    short = np.ldexp(np.rint(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    # The largest float32 would become infinite.
    limit = np.finfo(np.float32).max
    return np.asarray(np.clip(short, -limit, limit), np.float32)

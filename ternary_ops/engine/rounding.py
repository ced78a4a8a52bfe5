# SPDX-License-Identifier: Apache-2.0
"""Scales and biases with fewer digits: in a small network's file they weigh a fifth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ternary_ops.engine.ir import Array, Graph

# Those of bfloat16: a relative error of at most 2**-8, beside activations of 8 bits.
_BITS = 8


def round_vectors(graph: Graph) -> Graph:
    """A graph with the scales and biases of integer weights rounded to 8 significant bits."""
    weights = tuple(
        w if w.kind == "float" else replace(w, scale=_rounded(w.scale), bias=_rounded(w.bias))
        for w in graph.weights
    )
    return replace(graph, weights=weights)


def _rounded(values: Array | None) -> Array | None:
    if values is None:
        return None
    # In float64 nothing else is rounded; ties go to even, as everywhere here.
    mantissa, exponent = np.frexp(values.astype(np.float64))
    short = np.ldexp(np.rint(np.ldexp(mantissa, _BITS)), exponent - _BITS)
    # The largest float32 would become infinite.
    limit = np.finfo(np.float32).max
    return np.asarray(np.clip(short, -limit, limit), np.float32)

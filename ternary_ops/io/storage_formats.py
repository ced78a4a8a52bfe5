# SPDX-License-Identifier: Apache-2.0
"""Storage formats of sparse weights by the formulas of "Sparsity in Deep Learning" (Hoefler et al.
2021, arXiv 2102.00554), to compare with: files of this package are entropy-coded (`container`).

n values of which m are not zero, as a matrix of `rows` filters with `cols` values each; k bits a
nonzero value (ternary: its sign, 1), K a value that may be zero (2, 8 or 32); bits(i), the ceiling
of log2 i, tell i numbers apart:

    dense         n K
    bitmap        n + m k
    coo           m (bits(n) + k)                positions
    delta         m (bits(largest gap) + k)      distances from one to the next, in row-major order
    padded_delta  (m + pads) (b + k)             the best of all b; a gap that b bits do not hold
                                                 gets zero values in between. Signs have no zero:
                                                 there one code says "on", m (b + k) + pads b
    csr           m (bits(cols) + k) + rows bits(m + 1)
    csc           the same of the transposed matrix
    blocked       one position a quad: q (bits(quads) + 4 K), q quads that are not empty

The survey prints bits(m) for the row pointers of CSR, one value too few: with m = 1 none would be
left to say which row it is. Shapes, m and b, which stand in a header, count in none of them.
NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import UnsupportedShape, need

# Bits of a nonzero value, and of one that may be zero.
VALUE_BITS = {"ternary": (1, 2), "int8": (8, 8), "float": (32, 32)}


def storage_bits(kind: str, values: NDArray[Any]) -> dict[str, int]:
    """Bits of a weight [O, ..., I] in each format; kind: ternary, int8 or float.

    >>> found = storage_bits("int8", np.eye(8, dtype=np.int8))
    >>> found["dense"], found["bitmap"], cheapest(found)
    (512, 128, 'delta')
    """
    if kind not in VALUE_BITS or values.ndim < 2:
        what = f"for storage_bits a weight [O, ..., I] of kind {', '.join(VALUE_BITS)}"
        raise UnsupportedShape(need(what, f"{kind!r} with {values.ndim} axes", "Pass such."))
    bare, full = VALUE_BITS[kind]
    used = occupied(values)
    rows, cols = used.reshape(len(used), -1).shape
    n, m = used.size, int(used.sum())
    gaps = np.diff(np.flatnonzero(used), prepend=-1)
    quads = np.add.reduceat(used, np.arange(0, used.shape[-1], 4), axis=-1) if n else used
    return {
        "dense": n * full,
        "bitmap": n + m * bare,
        "coo": m * (bits(n) + bare),
        "delta": m * (bits(int(gaps.max(initial=1))) + bare),
        "padded_delta": min(padded_bits(kind, gaps, b) for b in range(1, max(bits(n), 1) + 1)),
        "csr": m * (bits(cols) + bare) + rows * bits(m + 1),
        "csc": m * (bits(rows) + bare) + cols * bits(m + 1),
        "blocked": int((quads > 0).sum()) * (bits(quads.size) + 4 * full),
    }


def cheapest(found: Mapping[str, int]) -> str:
    """The format with the fewest bits; of equal ones the first."""
    return min(found, key=lambda name: found[name])


def bits(count: int) -> int:
    """Bits that tell so many numbers apart: ceil(log2 count); 0 for 0 and 1."""
    return max(count - 1, 0).bit_length()


def occupied(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where values have bits to keep: -0.0 is not zero here."""
    used: NDArray[np.bool_] = values != 0
    return used | np.signbit(values) if values.dtype.kind == "f" else used


def reach(kind: str, b: int) -> int:
    """Positions that one pad of a b-bit delta goes on by: a zero value stands on one itself."""
    return (1 << b) - (kind == "ternary")


def padded_bits(kind: str, gaps: NDArray[Any], b: int) -> int:
    """Bits of the zero-padded delta with b bits a distance."""
    pads = int(((gaps - 1) // reach(kind, b)).sum())
    bare = VALUE_BITS[kind][0]
    return len(gaps) * (b + bare) + pads * (b if kind == "ternary" else b + bare)

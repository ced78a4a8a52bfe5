# SPDX-License-Identifier: Apache-2.0
"""Cases of attention: one token, odd sizes, and more keys and queries than a block holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import OpCase
from ternary_ops import reference

Array = NDArray[Any]


@dataclass(frozen=True)
class AttentionShape:
    """q [n, heads, queries, width], k [n, heads, keys, width], v [n, heads, keys, depth]."""

    n: int
    heads: int
    queries: int
    keys: int
    width: int
    depth: int

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Shapes of q, k, v and the bias."""
        tokens = ((self.queries, self.width), (self.keys, self.width), (self.keys, self.depth))
        return [
            *((self.n, self.heads, *size) for size in tokens),
            (self.heads, self.queries, self.keys),
        ]

    @property
    def products(self) -> float:
        """Multiply-adds of both products."""
        return float(self.n * self.heads * self.queries * self.keys * (self.width + self.depth))

    def __str__(self) -> str:
        return f"{self.n}x{self.heads}x{self.queries}x{self.keys}, {self.width} and {self.depth}"


def by_tokens(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    """The reference of programs, whose channels lie before the tokens, for the operator's order."""
    heads, added = q.shape[1], None
    flat = (t.swapaxes(2, 3).reshape(len(t), -1, t.shape[2]) for t in (q, k, v))
    if bias is not None:
        turned = bias.swapaxes(1, 2).reshape(1, -1, bias.shape[1])
        added = np.repeat(turned, len(q), 0)
    made = reference.attention(*flat, added, heads=heads, scale=scale)
    return made.reshape(len(q), heads, -1, q.shape[2]).swapaxes(2, 3)


CASE = OpCase(
    op="attention",
    reference=by_tokens,
    integer_exact=False,
    shapes=(
        AttentionShape(1, 1, 1, 1, 1, 1),
        AttentionShape(2, 3, 19, 70, 5, 7),
        AttentionShape(1, 2, 65, 33, 16, 24),
    ),
    bench=(("deit-tiny, 1 image", AttentionShape(1, 3, 197, 197, 64, 64)),),
)

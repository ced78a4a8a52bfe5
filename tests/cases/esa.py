# SPDX-License-Identifier: Apache-2.0
"""Cases of esa: x [n, channels, *size], `inner` channels inside, convolutions on the pooled map."""

from __future__ import annotations

from dataclasses import dataclass

from cases import OpCase
from ternary_ops import reference


@dataclass(frozen=True)
class EsaShape:
    """One block; the pooled map takes `convolutions` of 3x3."""

    n: int
    channels: int
    inner: int
    size: tuple[int, int]
    convolutions: int

    @property
    def x(self) -> tuple[int, ...]:
        """Input shape."""
        return (self.n, self.channels, *self.size)

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """(O, I, K) of every convolution, in the operator's order."""
        inner = self.inner
        first = [(inner, self.channels, 1), (inner, inner, 1), (inner, inner, 3)]
        return [*first, *[(inner, inner, 3)] * self.convolutions, (self.channels, inner, 1)]

    @property
    def products(self) -> float:
        """Multiply-adds a pixel; those on smaller maps count by their share of the pixels."""
        shares = [1.0, 1.0, 0.25, *[1 / 36] * self.convolutions, 1.0]
        return sum(s * o * i * k * k for s, (o, i, k) in zip(shares, self.layers, strict=True))

    def __str__(self) -> str:
        return f"n{self.n}c{self.channels}.{self.inner}.{self.size[0]}x{self.size[1]}"


CASE = OpCase(
    op="esa",
    reference=reference.esa,
    integer_exact=False,
    shapes=(
        EsaShape(2, 10, 6, (15, 15), 1),
        EsaShape(2, 10, 6, (40, 33), 3),
        EsaShape(2, 10, 6, (16, 61), 2),
    ),
    bench=(
        ("ESA 48, 12 (EFDN)", EsaShape(1, 48, 12, (180, 320), 3)),
        ("ESA 52, 16 (RLFN)", EsaShape(1, 52, 16, (180, 320), 1)),
    ),
)

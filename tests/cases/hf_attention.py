# SPDX-License-Identifier: Apache-2.0
"""Cases of hf_attention: a chain of 3x3 convolutions whose result gates the input."""

from __future__ import annotations

from dataclasses import dataclass

from cases import OpCase
from ternary_ops import reference


@dataclass(frozen=True)
class HfShape:
    """x [n, chain[0], *size]; the chain names the channels between the convolutions."""

    n: int
    chain: tuple[int, ...]
    size: tuple[int, int]
    slopes: tuple[float, ...]

    @property
    def x(self) -> tuple[int, ...]:
        """Input shape."""
        return (self.n, self.chain[0], *self.size)

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """(O, I, K) of every convolution."""
        return [(o, i, 3) for i, o in zip(self.chain[:-1], self.chain[1:], strict=True)]

    @property
    def products(self) -> float:
        """Multiply-adds a pixel."""
        return float(sum(o * i * k * k for o, i, k in self.layers))

    def __str__(self) -> str:
        return f"n{self.n}." + "-".join(map(str, self.chain))


def _fmen(channels: int, inner: int, blocks: int) -> HfShape:
    """As FMEN builds its HFAB."""
    slopes = (0.1, *(0.1, 1.0) * blocks)
    return HfShape(1, (channels, *[inner] * (2 * blocks + 1), channels), (180, 320), slopes)


CASE = OpCase(
    op="hf_attention",
    reference=reference.hf_attention,
    integer_exact=False,
    shapes=(
        HfShape(2, (10, 4, 4, 10), (11, 17), (0.1, 1.0)),
        HfShape(2, (6, 6), (11, 17), ()),
        HfShape(2, (3, 5, 3), (11, 17), (0.01,)),
    ),
    bench=(
        ("HFAB 50, 16, 1 (FMEN-S)", _fmen(50, 16, 1)),
        ("HFAB 50, 12, 2 (FMEN-S)", _fmen(50, 12, 2)),
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""Cases of sr_gate: maps of any width, a smaller map enlarged to them, crops of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import OpCase
from ternary_ops import reference


@dataclass(frozen=True)
class GateShape:
    """x, gate and, where asked, residual of one shape; low: size of the smaller map."""

    x: tuple[int, int, int, int]
    low: tuple[int, int] | None = None
    residual: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def products(self) -> float:
        """Multiply-adds of convolutions: none."""
        return 0.0

    def operands(self, seed: int = 0) -> list[NDArray[np.float32] | None]:
        """x, gate, low, residual; those that are left out are None."""
        rng = np.random.default_rng(seed)

        def draw(shape: tuple[int, ...]) -> NDArray[np.float32]:
            return (3 * rng.standard_normal(shape)).astype(np.float32)

        low = None if self.low is None else draw((*self.x[:2], *self.low))
        return [draw(self.x), draw(self.x), low, draw(self.x) if self.residual else None]

    def __str__(self) -> str:
        low = [] if self.low is None else ["low" + "x".join(map(str, self.low))]
        more = [*low, *(["residual"] if self.residual else []), *self.options]
        return ".".join(["x".join(map(str, self.x)), *more])


CASE = OpCase(
    op="sr_gate",
    reference=reference.sr_gate,
    integer_exact=False,
    shapes=(
        GateShape((2, 5, 7, 33)),
        GateShape((1, 3, 16, 16), residual=True, options={"offset": 0.5}),
        GateShape((2, 4, 13, 21), (3, 4), residual=True),
        GateShape((1, 1, 1, 1), (1, 1)),
        GateShape(
            (1, 2, 9, 40), (5, 9), options={"image": (50, 100), "origin": (41, 13), "offset": -0.25}
        ),
        GateShape((1, 3, 6, 5), (20, 30), residual=True),
    ),
    bench=(("gate 48 (SPAN)", GateShape((1, 48, 180, 320), options={"offset": 0.5})),),
)

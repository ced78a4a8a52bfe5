# SPDX-License-Identifier: Apache-2.0
"""Statistics: channel totals of a run, which the engine adds up while it makes the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, need

Totals = NDArray[np.int64]


@dataclass(frozen=True)
class Statistics:
    """Per image and channel of every integer value: the sum of its codes and of their squares.

    output: what the program returns; sums, squares: int64 [N, channels], the channels of one value
    behind those of the one before; offsets: of each node's first channel, and behind them the
    number of all (a node of floats has no channels); pixels: of a channel of each node.
    """

    output: NDArray[np.float32]
    sums: Totals
    squares: Totals
    offsets: tuple[int, ...]
    pixels: tuple[int, ...]

    def node(self, i: int) -> tuple[Totals, Totals]:
        """Sums and squares [N, C] of node i; raises BadConfig for one that makes floats."""
        if not 0 <= i < len(self.pixels) or self.offsets[i] == self.offsets[i + 1]:
            do = f"Nodes with statistics: {self.nodes()}."
            raise BadConfig(need("a node that makes uint8", i, do))
        own = slice(self.offsets[i], self.offsets[i + 1])
        return self.sums[:, own], self.squares[:, own]

    def nodes(self) -> list[int]:
        """Every node that makes uint8."""
        return [i for i in range(len(self.pixels)) if self.offsets[i] < self.offsets[i + 1]]

    def counts(self) -> NDArray[np.int64]:
        """Pixels of each channel, [channels]: sums / counts are the means of the codes."""
        return np.repeat(np.asarray(self.pixels, np.int64), np.diff(self.offsets))


def pixels(shape: Sequence[int]) -> int:
    """Numbers that one channel has in one image of a value [N, C, H, W], [N, L, C] or [N, C]."""
    return int(np.prod(shape[2:])) if len(shape) == 4 else shape[1] if len(shape) == 3 else 1

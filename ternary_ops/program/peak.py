# SPDX-License-Identifier: Apache-2.0
"""Measured peak of one core: products from registers, bytes from cache and memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ternary_ops import _native

_ROUNDS, _REPEATS = 20_000, 7
_L2_BYTES, _DRAM_BYTES = 192 * 1024, 256 * 1024 * 1024


@dataclass(frozen=True)
class Ceilings:
    """Of one core and the instruction set in use: GMAC/s in 8 bits and in float32, and GB/s read
    from the second-level cache and from memory.
    """

    int8_gmac_s: float
    float_gmac_s: float
    l2_gb_s: float
    dram_gb_s: float

    def of(self, kind: str) -> float:
        """GMAC/s that a layer of that kind of weights is held against."""
        return self.float_gmac_s if kind == "float" else self.int8_gmac_s


def products() -> tuple[float, float]:
    """GMAC/s of one core from registers, 8-bit and float32: the best of a few bursts."""
    core = _native.core()
    return _rate(lambda: core.dot_burst(_ROUNDS)), _rate(lambda: core.float_burst(_ROUNDS))


def measure() -> Ceilings:
    """All four; takes about a second, most of it reading memory."""
    core = _native.core()
    reads = []
    for size in (_L2_BYTES, _DRAM_BYTES):
        block = np.ones(size, np.uint8)
        passes = max(1, (1 << 26) // size)

        def read(block: object = block, size: int = size, passes: int = passes) -> int:
            for _ in range(passes):
                core.read_burst(block)
            return size * passes

        reads.append(_rate(read))
    return Ceilings(*products(), *reads)


@functools.cache
def known_products(isa: str) -> tuple[float, float]:
    """`products` of the instruction set in use, which `isa` names, once a process."""
    return products()


def _rate(burst: Callable[[], int]) -> float:
    """Best of a few runs, in units of 1e9 a second: the peak is the undisturbed run."""
    burst()
    best = 0.0
    for _ in range(_REPEATS):
        start = time.perf_counter()
        done = burst()
        best = max(best, done / (time.perf_counter() - start))
    return best / 1e9

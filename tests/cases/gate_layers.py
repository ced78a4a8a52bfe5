# SPDX-License-Identifier: Apache-2.0
"""Random convolutions of attention blocks, for cases.esa and cases.hf_attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Layers = tuple[list[NDArray[Any]], list[NDArray[Any]]]


def layers(shapes: list[tuple[int, int, int]], seed: int = 0) -> Layers:
    """Weights [O, I, K, K] of unit gain, and biases, from (O, I, K)."""
    rng = np.random.default_rng(seed)
    weights = [
        (rng.standard_normal((o, i, k, k)) / (i * k * k) ** 0.5).astype(np.float32)
        for o, i, k in shapes
    ]
    return weights, [rng.standard_normal(len(w)).astype(np.float32) for w in weights]

# SPDX-License-Identifier: Apache-2.0
"""Bytes of a file by form, and the entropy bound of its weights."""

from __future__ import annotations

import numpy as np
import pytest

from ternary_ops.io import container
from ternary_ops.io.container import WeightEntry
from ternary_ops.io.sizes import Sizes, entropy_bound, sizes


def test_entropy_bound_of_known_distributions():
    half = np.array([1, -1] * 128, np.int8).reshape(4, 64)
    assert entropy_bound(half, "element") == pytest.approx(256)
    assert entropy_bound(half, "1x4") == pytest.approx(256)
    quads = np.zeros((4, 64), np.int8)
    quads[:, :16] = np.array([1, -1] * 8)
    expected = 64 * (0.25 * np.log2(4) + 0.75 * np.log2(4 / 3)) + 64
    assert entropy_bound(quads, "1x4") == pytest.approx(expected)
    padded = quads[:, :14]  # 3 whole quads and one of two values, all occupied
    assert entropy_bound(padded, "1x4") == pytest.approx(padded.size)
    assert entropy_bound(np.zeros((0, 4), np.int8), "1x4") == 0
    with pytest.raises(ValueError, match="2x2"):
        entropy_bound(quads, "2x2")


def test_sizes_side_by_side():
    codes = np.random.default_rng(0).integers(-1, 2, (8, 3, 3, 18)).astype(np.int8)
    int8 = np.random.default_rng(1).integers(-127, 128, (5, 1, 1, 8)).astype(np.int8)
    scale = np.ones(8, np.float32)
    entries = [
        WeightEntry("c", "ternary", codes),
        WeightEntry("i", "int8", int8),
        WeightEntry("s", "float32", scale),
    ]
    document = container.read(container.dumps("x", {}, entries))
    bound = min(entropy_bound(codes, "element"), entropy_bound(codes, "1x4"))
    bound += entropy_bound(int8, "element")
    assert sizes(document) == Sizes(
        float32=4 * (codes.size + int8.size + scale.size),
        dense=codes.size // 4 + int8.size + scale.nbytes,
        file=document.size,
        bound=pytest.approx(bound / 8 + scale.nbytes),
    )

# SPDX-License-Identifier: Apache-2.0
"""Storage formats by formula: they count what encoders need, and cross where the survey says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from storage_codecs import decode, encode

from ternary_ops.errors import UnsupportedShape
from ternary_ops.io.storage_formats import cheapest, storage_bits

SHAPES = ((9, 3, 3, 14), (16, 40), (1, 1))


def weight(kind: str, shape: tuple[int, ...], density: float, rng: Any) -> Any:
    """Exactly that share of nonzero values; 0 < density < 1/n: one."""
    n = int(np.prod(shape))
    count = min(n, max(round(density * n), int(density > 0)))
    flat = np.zeros(n, np.float32 if kind == "float" else np.int8)
    at = rng.permutation(n)[:count]
    if kind == "ternary":
        flat[at] = rng.choice([-1, 1], count)
    elif kind == "int8":
        flat[at] = rng.choice([-128, -5, 1, 127], count)
    else:
        flat[at] = rng.standard_normal(count)
        flat[at[:1]] = -0.0  # not the zero that is left out
    return flat.reshape(shape)


@pytest.mark.parametrize("density", [0, 1e-9, 0.01, 0.1, 0.5, 1])
@pytest.mark.parametrize("kind", ["ternary", "int8", "float"])
def test_round_trip_and_bytes_as_the_formula_says(kind: str, density: float) -> None:
    rng = np.random.default_rng(int(100 * density))
    for shape in SHAPES:
        values = weight(kind, shape, density, rng)
        found = storage_bits(kind, values)
        sizes = {}
        for name, wanted in found.items():
            data, about = encode(name, kind, values)
            sizes[name] = len(data)
            assert len(data) == -(-wanted // 8), (name, shape)
            back = decode(name, kind, data, about)
            assert back.dtype == values.dtype and back.tobytes() == values.tobytes(), (name, shape)
        assert sizes[cheapest(found)] == min(sizes.values())


def test_one_value_at_either_end() -> None:
    for place in (0, -1):
        values = np.zeros((8, 16), np.int8)
        values.reshape(-1)[place] = 1
        for name, wanted in storage_bits("ternary", values).items():
            data, about = encode(name, "ternary", values)
            assert len(data) == -(-wanted // 8)
            assert np.array_equal(decode(name, "ternary", data, about), values), name


def bits_a_weight(kind: str, zeros: float) -> dict[str, float]:
    values = weight(kind, (400, 500), 1 - zeros, np.random.default_rng(3))
    return {name: found / values.size for name, found in storage_bits(kind, values).items()}


def test_figures_and_crossovers_of_the_survey() -> None:
    """Bits a weight at 90 and 95 %, and where the cheapest format changes (random positions)."""
    nine = bits_a_weight("int8", 0.9)
    assert nine["bitmap"] == pytest.approx(1.8)
    assert nine["padded_delta"] == pytest.approx(1.35, abs=0.01)
    assert bits_a_weight("int8", 0.95)["padded_delta"] == pytest.approx(0.73, abs=0.01)
    assert bits_a_weight("float", 0.9)["padded_delta"] == pytest.approx(3.80, abs=0.02)
    order = [
        cheapest(bits_a_weight("int8", zeros)) for zeros in (0.0, 0.11, 0.14, 0.74, 0.78, 0.99)
    ]
    assert order == ["dense", "dense", "bitmap", "bitmap", "padded_delta", "padded_delta"]
    # Without any zero a ternary weight is its signs alone.
    signs = [cheapest(bits_a_weight("ternary", zeros)) for zeros in (0.0, 0.02, 0.45, 0.55)]
    assert signs == ["delta", "bitmap", "bitmap", "padded_delta"]


def test_empty_quads_make_blocks_cheaper_than_single_positions() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((64 * 16, 4), np.int8)
    values[rng.permutation(1024)[:100]] = rng.choice([-1, 1], (100, 4))
    found = storage_bits("ternary", values.reshape(64, 64))
    assert found["blocked"] == 100 * (10 + 8) < found["coo"] == 400 * (12 + 1)


def test_what_is_no_weight_is_refused() -> None:
    with pytest.raises(UnsupportedShape, match="ternary, int8, float.*'int4'"):
        storage_bits("int4", np.zeros((2, 2), np.int8))
    with pytest.raises(UnsupportedShape, match="1 axes"):
        storage_bits("int8", np.zeros(2, np.int8))

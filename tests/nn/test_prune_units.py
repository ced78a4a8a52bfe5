# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_ops.errors import BadConfig
from ternary_ops.nn.patterns import (
    Pattern,
    best_units,
    fit_pattern,
    from_mask,
    get_pattern,
    kth_by_topk,
    lowest,
    to_mask,
    unit_scores,
)

PATTERNS = ["element", "1x4", "2x3", "4x1", "filter"]
SHAPES = [(5, 7, 3, 3), (6, 8), (1, 1), (3, 4, 1, 5), (8, 3, 3, 3)]
CASES = list(itertools.product(PATTERNS, SHAPES))


def slow_units(shape: tuple[int, ...], pattern: str) -> list[np.ndarray]:
    """Flat weight numbers of each unit, by loops, in the order of the grid."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape[0], shape[1], -1)
    if pattern == "filter":
        return [numbers[o].ravel() for o in range(shape[0])]
    rows, cols = (1, 1) if pattern == "element" else map(int, pattern.split("x"))
    return [
        numbers[o : o + rows, i : i + cols, t].ravel()
        for o in range(0, shape[0], rows)
        for i in range(0, shape[1], cols)
        for t in range(numbers.shape[2])
    ]


@pytest.mark.parametrize(("pattern", "shape"), CASES)
def test_scores_are_sums_of_magnitudes(pattern: str, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    flat = weight.flatten().abs().double()
    expected = torch.stack(
        [flat[torch.from_numpy(unit)].sum() for unit in slow_units(shape, pattern)]
    )
    scores = unit_scores(weight, get_pattern(pattern))
    assert scores.dtype == torch.float32
    assert len(scores) == get_pattern(pattern).units(weight.shape)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("pattern", "shape"), CASES)
def test_masks_cover_exactly_the_units_that_are_kept(pattern: str, shape: tuple[int, ...]) -> None:
    units = slow_units(shape, pattern)
    kept = torch.rand(len(units)) < 0.5
    expected = np.zeros(int(np.prod(shape)), dtype=bool)
    for unit, keep in zip(units, kept.tolist(), strict=True):
        expected[unit] = keep
    mask = to_mask(kept, torch.Size(shape), get_pattern(pattern))
    assert mask.shape == shape
    assert np.array_equal(mask.numpy().ravel(), expected)
    assert torch.equal(from_mask(mask, get_pattern(pattern)), kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_other_dtypes(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 9, 3, 3).to(dtype)
    scores = unit_scores(weight, get_pattern("1x4"))
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        scores, unit_scores(weight.double(), get_pattern("1x4")).to(scores.dtype)
    )


def test_layout_in_memory_does_not_matter() -> None:
    weight = torch.randn(6, 8, 3, 3)
    pattern = get_pattern("1x4")
    same = unit_scores(weight.to(memory_format=torch.channels_last), pattern)
    assert torch.equal(same, unit_scores(weight, pattern))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
@settings(max_examples=200, deadline=None)
def test_lowest_takes_the_exact_count_and_of_ties_the_first(
    values: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(values)))
    chosen = lowest(torch.tensor(values, dtype=torch.float32), count)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    assert chosen.nonzero().flatten().tolist() == sorted(order[:count])


@pytest.mark.parametrize("k", [1, 2, 50, 51, 100, 101])
def test_the_way_of_other_devices_finds_the_same_threshold(k: int) -> None:
    scores = torch.randint(0, 30, (101,)).float()
    assert kth_by_topk(scores, k) == scores.sort().values[k - 1]


def test_lowest_with_infinities_and_more_units_than_quantile_takes() -> None:
    scores = torch.rand(2**24 + 3).mul_(1000).floor_()  # many ties; torch.quantile stops at 2**24
    scores[::2] = torch.inf
    count = 8_000_000
    chosen = lowest(scores, count)
    assert int(chosen.sum()) == count
    assert not bool(chosen[::2].any())
    assert scores[chosen].max() <= scores[~chosen].min()


@pytest.mark.parametrize("per_row", [1, 2, 9, 20])
def test_best_units_of_each_row(per_row: int) -> None:
    scores = torch.randn(5 * 9)
    best = best_units(scores, 5, per_row)
    grid = scores.view(5, 9)
    expected = {
        row * 9 + int(i) for row in range(5) for i in np.argsort(-grid[row].numpy())[:per_row]
    }
    assert set(best.tolist()) == expected
    assert best_units(scores, 5, 0).tolist() == [int(scores.argmax())]


def test_names_of_patterns() -> None:
    assert get_pattern("1x4") == Pattern("1x4", 1, 4)
    assert get_pattern("16x2") == Pattern("16x2", 16, 2)
    assert get_pattern("1x1") == get_pattern("element")
    for name in ("0x4", "4", "1x", "1x4x1", "x", "quad", "-1x4", ""):
        with pytest.raises(BadConfig, match="element.*filter.*NxM"):
            get_pattern(name)


def test_narrow_groups_fall_back_to_elements() -> None:
    def fitted(name: str, shape: tuple[int, ...], groups: int) -> str:
        return fit_pattern(get_pattern(name), torch.Size(shape), groups, "layer").name

    assert fitted("1x4", (8, 1, 3, 3), groups=8) == "element"
    assert fitted("1x4", (8, 3, 3, 3), groups=2) == "element"
    assert fitted("1x4", (8, 4, 3, 3), groups=2) == "1x4"
    assert fitted("1x4", (8, 3, 3, 3), groups=1) == "1x4"  # padded, not narrowed
    assert fitted("filter", (8, 1, 3, 3), groups=8) == "filter"

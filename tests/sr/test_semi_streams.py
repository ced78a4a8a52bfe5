# SPDX-License-Identifier: Apache-2.0
"""Streams of a semi-supervised training: disjoint, independent, and of one shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from semi_task import PATCH, SCALE, scene, small_of, streams

from ternary_ops import sr
from ternary_ops.errors import BadConfig, UnsupportedShape

HOUR = np.datetime64("2019-03-01T00", "h")


def large(ids: object, count: int = 8) -> sr.UnpairedPatches:
    return sr.UnpairedPatches(
        [scene(200 + i) for i in range(count)],
        SCALE * PATCH,
        ids=ids,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("shared", [3, 103, 301])
def test_a_scene_of_two_streams_is_refused(shared: int) -> None:
    name = {0: "pairs", 1: "low", 3: "held_out"}[shared // 100]
    with pytest.raises(BadConfig, match=f"(?s)no shared ids of .*{name}.*, got {shared} in both"):
        streams(high=large([*range(200, 207), shared]))


def test_ids_are_needed_to_prove_it() -> None:
    with pytest.raises(BadConfig, match="ids of the stream high"):
        streams(high=large(None))
    with pytest.raises(BadConfig, match="of one kind"):
        streams(high=large([f"scene {i}" for i in range(8)]))
    unpaired = sr.PairedPatches([(small_of(scene(0)), scene(0))], SCALE, PATCH)
    assert sr.Streams(unpaired).high is None
    with pytest.raises(BadConfig, match="ids of the stream pairs"):
        sr.Streams(unpaired, held_out=[1])
    with pytest.raises(BadConfig, match="images to train on"):
        sr.UnpairedPatches([], 8)


def dated(pair_hours: list[int], low: list[int], high: list[int], test: list[int]) -> sr.Streams:
    x = scene(0)
    dates = [HOUR + np.array(hours, "timedelta64[h]") for hours in (pair_hours, low, high, test)]
    return sr.Streams(
        sr.PairedPatches([(small_of(x), x)] * len(pair_hours), SCALE, PATCH, ids=dates[0]),
        sr.UnpairedPatches([small_of(x)] * len(low), PATCH, ids=dates[1]),
        sr.UnpairedPatches([x] * len(high), SCALE * PATCH, ids=dates[2]),
        dates[3],
    )


def test_dates_are_compared_by_whole_days() -> None:
    dated([0, 30], [1, 2, 26], [49, 50], [75])
    for hours, names in (
        (([0], [25], [26], [75]), "low and high"),
        (([0], [25], [49], [50]), "high and held_out"),
        (([0], [25], [49], [1]), "pairs and held_out"),
        (([49], [25], [49], [75]), "pairs and high"),
    ):
        with pytest.raises(BadConfig, match=f"no shared dates of {names}"):
            dated(*hours)


def test_unpaired_streams_have_no_hidden_pairing() -> None:
    """The same scenes in another order: the other stream keeps its bits, and which images meet in
    a step tells nothing.
    """
    one = streams()
    assert one.low is not None and one.high is not None
    images = [scene(200 + i) for i in range(8)]
    order = np.random.default_rng(3).permutation(8)
    shuffled = sr.UnpairedPatches([images[i] for i in order], SCALE * PATCH)

    def chosen(patches: sr.UnpairedPatches, stream: int, steps: int) -> np.ndarray:  # type: ignore[type-arg]
        plain = sr.UnpairedPatches(
            [np.full((16, 16, 1), i, np.float32) for i in range(len(patches))], 8
        )
        return np.concatenate(
            [plain.batch(step, 2, 0, stream)[:, 0, 0, 0].numpy() for step in range(steps)]
        )

    low, high = chosen(one.low, 1, 400), chosen(one.high, 2, 400)
    met = np.histogram2d(low, high, bins=(8, 8), range=((0, 8), (0, 8)))[0]
    expected = len(low) / 64
    chi2 = float(((met - expected) ** 2 / expected).sum())
    assert chi2 < 110  # 63 degrees of freedom: p = 2e-4
    first, second = (p.batch(0, 2, 0, 2) for p in (one.high, shuffled))
    assert not torch.equal(first, second)
    kinds = [
        sorted({float(p.batch(s, 2, 0, 2).double().mean().round(decimals=1)) for s in range(60)})
        for p in (one.high, shuffled)
    ]
    assert kinds[0] == kinds[1]


def test_patches_of_another_size_are_refused() -> None:
    low = sr.UnpairedPatches([small_of(scene(100))], PATCH + 1, ids=[100])
    with pytest.raises(UnsupportedShape, match="in the stream low"):
        streams(low=low)

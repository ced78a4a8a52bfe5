# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from ternary_ops.errors import BadConfig
from ternary_ops.prune import SCHEDULES, Schedule, get_schedule, iterative, one_cycle

# Fractions of the target at t = 0, 0.1, ... 1, worked out by hand from the published formula.
TABLES = {
    (14.0, 6.0): [
        0.0025,
        0.0100,
        0.0392,
        0.1419,
        0.4015,
        0.7313,
        0.9171,
        0.9785,
        0.9949,
        0.9990,
        1,
    ],
    (14.0, 5.0): [
        0.0067,
        0.0266,
        0.0998,
        0.3101,
        0.6457,
        0.8809,
        0.9678,
        0.9920,
        0.9981,
        0.9996,
        1,
    ],
}
NAMES = sorted(name for name, s in SCHEDULES.items() if s.last == 1.0 and not s.cyclic)


@pytest.mark.parametrize(("alpha", "beta"), TABLES)
def test_one_cycle_follows_the_published_table(alpha: float, beta: float) -> None:
    schedule = one_cycle(alpha, beta)
    for k, expected in enumerate(TABLES[alpha, beta]):
        assert schedule(k / 10) == pytest.approx(expected, abs=1e-4)
    assert schedule(beta / alpha) == pytest.approx(0.5, abs=1e-3)


def test_the_default_is_alpha_14_beta_6() -> None:
    assert get_schedule("one_cycle").curve(0.37) == one_cycle(14, 6).curve(0.37)
    assert SCHEDULES["one_cycle"](0.37) != one_cycle(14, 5)(0.37)


@pytest.mark.parametrize(("alpha", "beta"), TABLES)
def test_zero_start_meets_both_ends(alpha: float, beta: float) -> None:
    schedule = one_cycle(alpha, beta, zero_start=True)
    assert schedule.curve(0.0) == 0.0
    assert schedule.curve(1.0) == 1.0
    plain, first = one_cycle(alpha, beta), one_cycle(alpha, beta)(0.0)
    assert schedule(0.5) == pytest.approx((plain(0.5) - first) / (1 - first), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("final", [0.9, 0.1, 1 / 3])
@pytest.mark.parametrize("end", [1.0, 0.9, 0.7])
def test_every_schedule_is_monotone_and_exact_at_its_end(
    name: str, final: float, end: float
) -> None:
    schedule = SCHEDULES[name]
    values = [schedule(k / 1000, end=end, final=final, initial=0.05) for k in range(1001)]
    assert values == sorted(values)
    assert [v for k, v in enumerate(values) if k / 1000 >= end] == [final] * (
        1001 - math.ceil(end * 1000 - 1e-9)
    )
    assert schedule.curve(1.0) == 1.0
    before = [v for k, v in enumerate(values) if k / 1000 < schedule.start]
    assert before == [0.05] * len(before)


def test_start_and_end_stretch_the_curve() -> None:
    schedule = SCHEDULES["one_cycle"]
    assert schedule(0.45, start=0.2, end=0.7) == pytest.approx(schedule(0.5), abs=1e-12)
    assert schedule(0.19, start=0.2, end=0.7) == 0.0
    assert schedule(0.2, start=0.2, end=0.7) == pytest.approx(0.00247, abs=1e-5)


def test_one_shot_jumps_at_half() -> None:
    one_shot = SCHEDULES["one_shot"]
    assert [one_shot(t) for t in (0.0, 0.499, 0.5, 0.9)] == [0.0, 0.0, 1.0, 1.0]


def test_agp_is_cubic_from_a_fifth_on() -> None:
    agp = SCHEDULES["agp"]
    assert agp(0.2) == 0.0
    assert agp(0.6) == pytest.approx(1 - 0.5**3, abs=1e-12)
    mean = sum(agp((k + 0.5) / 1000) for k in range(1000)) / 1000
    assert mean == pytest.approx(0.600, abs=1e-3)  # mean share over training


def test_iterative_jumps_by_equal_steps_from_a_fifth_on() -> None:
    three = SCHEDULES["iterative"]
    assert [three(t) for t in (0.0, 0.19)] == [0.0, 0.0]
    seen = [three(0.2 + 0.8 * k / 300) for k in range(1, 301)]
    assert sorted(set(seen)) == pytest.approx([1 / 3, 2 / 3, 1])
    assert seen.count(seen[0]) == pytest.approx(100, abs=1)
    mean = sum(three((k + 0.5) / 3000, initial=0.0) for k in range(3000)) / 3000
    assert mean == pytest.approx(0.533, abs=1e-3)  # mean share over training
    assert iterative(5)(0.2 + 0.8 * 0.39, final=0.9) == pytest.approx(0.36)
    for steps in (0, -1, 2.0, True):
        with pytest.raises(BadConfig, match="steps"):
            iterative(steps)  # type: ignore[arg-type]


def test_cosine_linear_and_there_and_back() -> None:
    assert SCHEDULES["linear"](0.3, final=0.8) == pytest.approx(0.24)
    assert SCHEDULES["cosine"](0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    dsd = SCHEDULES["dsd"]
    values = [dsd(k / 100, final=0.9, initial=0.1) for k in range(101)]
    assert values[50] == pytest.approx(0.9) and values[0] == pytest.approx(0.1)
    assert values[100] == 0.1
    assert values[:51] == sorted(values[:51]) and values[50:] == sorted(values[50:], reverse=True)
    assert len(set(values[51:])) == 50  # it falls by degrees, not at once


def test_a_schedule_of_your_own_passes_through() -> None:
    mine = Schedule("square", lambda t: t * t, start=0.5)
    assert get_schedule(mine) is mine
    assert mine(0.75, final=0.8) == pytest.approx(0.2)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(BadConfig, match="agp.*one_cycle|one_cycle.*agp"):
        get_schedule("one-cycle")


@pytest.mark.parametrize("options", [(0.0, 6.0), (-1.0, 6.0), (math.nan, 6.0), (14.0, math.inf)])
def test_bad_steepness_is_refused(options: tuple[float, float]) -> None:
    with pytest.raises(BadConfig, match="alpha"):
        one_cycle(*options)


def test_names_tell_options_apart() -> None:
    names = {one_cycle().name, one_cycle(14, 5).name, one_cycle(zero_start=True).name}
    assert len(names | {iterative().name, iterative(5).name}) == 5

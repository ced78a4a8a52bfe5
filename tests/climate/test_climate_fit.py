# SPDX-License-Identifier: Apache-2.0
"""Matching, baselines, scores, and a model of a domain from training to its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import climate_data as made
import numpy as np
import pytest

from ternary_ops import climate
from ternary_ops.climate import baselines
from ternary_ops.climate.samples import in_memory, match, matrix
from ternary_ops.climate.scores import compare
from ternary_ops.climate.time_axis import last_runs, time_axis
from ternary_ops.errors import BadConfig, FormatError, UnsupportedShape

Data = dict[str, Any]


def data() -> Data:
    """A target with a cell at sea, and predictors on two grids that explain it."""
    wide = made.dataset(made.grid(4, 5), ("tas", "pr"))
    deep = made.dataset(made.grid(3, 4, 2.5), ("psl",), seed=3)
    fine = made.dataset(made.grid(6, 7, 1.5), seed=5)
    mean = wide["tas"].mean(("lat", "lon")) + 0.5 * deep["psl"].mean(("lat", "lon")) ** 2
    fine["tas"] = (fine["tas"] * 0.1 + mean).transpose("time", "lat", "lon").astype(np.float32)
    fine["tas"].attrs["units"] = "degC"
    fine["tas"][:, 2, 3] = np.nan
    return {"obs": fine, "wide": wide, "deep": deep}


def halves(all_days: Data) -> tuple[Data, Data]:
    return (
        {k: v.isel(time=slice(0, 32)) for k, v in all_days.items()},
        {k: v.isel(time=slice(32, None)) for k, v in all_days.items()},
    )


FEATURES = climate.Features("obs", "tas")


def test_steps_match_by_date_and_the_step_before_stops_at_gaps() -> None:
    sets = data()
    sets["deep"] = sets["deep"].isel(time=slice(3, None))
    noon = sets["wide"].assign_coords(time=sets["wide"]["time"] + np.timedelta64(12, "h"))
    samples = in_memory(match({**sets, "wide": noon}, FEATURES))
    assert len(samples.times) == 37
    gaps = np.flatnonzero(~samples.times.previous)
    assert gaps.tolist() == [0, 5, 13, 21, 29]
    x = matrix(samples, FEATURES)
    fields = 2 * 20 + 12
    assert x.shape == (37, 2 * fields + 2)
    np.testing.assert_array_equal(x[1, fields : 2 * fields], x[0, :fields])
    np.testing.assert_array_equal(x[5, fields : 2 * fields], x[5, :fields])
    nan = matrix(samples, replace(FEATURES, gap="nan"))
    assert np.isnan(nan[5, fields : 2 * fields]).all() and np.isfinite(nan[6]).all()
    assert np.flatnonzero(last_runs(samples.times)).tolist() == list(range(13, 37))


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "standard"])
def test_calendars_are_those_of_cf(calendar: str) -> None:
    time = made.xr.date_range("2000-02-25", periods=8, calendar=calendar, use_cftime=True)
    axis = time_axis(made.xr.Dataset(coords={"time": time}))
    assert axis.previous.sum() == 7 and len(set(axis.keys)) == 8
    assert ("2000-02-30" in axis.keys) == (calendar == "360_day")


@pytest.mark.parametrize("kind", ["Ridge", "KernelRidge", "Bilinear", "Conservative", "DeltaBias"])
def test_baselines_learn_and_refuse_their_own_dates(kind: str) -> None:
    train, test = halves(data())
    model = getattr(baselines, kind)(FEATURES).fit(train)
    fine = model.predict(test)
    assert fine.dims == ("time", "lat", "lon") and fine.attrs["units"] == "degC"
    assert np.isnan(fine.values).sum() == len(fine) * 1
    score = climate.score(fine, test["obs"]["tas"], model)
    mean = float(np.nanstd(test["obs"]["tas"].values - np.nanmean(train["obs"]["tas"].values)))
    assert 0 < score["rmse"] < (0.8 * mean if "Ridge" in kind else np.inf)
    with pytest.raises(BadConfig, match="not trained on"):
        model.predict(train)
    with pytest.raises(BadConfig, match="not trained on"):
        climate.score(model.predict(train, trained=True), train["obs"]["tas"], model)


def test_kernel_ridge_chooses_on_the_last_winters_what_a_fit_there_finds() -> None:
    train, _ = halves(data())
    model = baselines.KernelRidge(FEATURES, strengths=(0.01, 0.1), widths=(0.02, 0.2)).fit(train)
    first = {k: v.isel(time=slice(0, 8)) for k, v in train.items()}
    last = {k: v.isel(time=slice(8, None)) for k, v in train.items()}
    for error, option in model.scores:
        one = baselines.KernelRidge(
            FEATURES, strengths=(option["strength"],), widths=(option["width"],)
        ).fit(first)
        made_fields = one.predict(last)
        assert climate.score(made_fields, last["obs"]["tas"])["rmse"] == pytest.approx(error)
    assert model.chosen == min(model.scores, key=lambda s: s[0])[1]


def test_scores_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 12, 10))
    truth[:, 0, 0] = np.nan
    same = compare(truth, truth)
    assert same["rmse"] == 0 and same["spectrum"] == 0 and same["correlation"] == pytest.approx(1)
    shifted = compare(truth + 2, truth)
    assert shifted["rmse"] == pytest.approx(2) and shifted["bias"] == pytest.approx(2)
    assert shifted["rmse_without_bias"] == pytest.approx(0, abs=1e-9)
    assert shifted["p99"] == pytest.approx(2)
    wide = compare(3 * truth, truth)
    assert wide["spectrum"] == pytest.approx(np.log10(9), abs=1e-6)
    assert wide["p95"] > 2 and wide["p5"] < -2
    with pytest.raises(BadConfig, match="missing ones alone"):
        compare(truth, np.full_like(truth, np.nan))


def test_a_domain_model_trains_saves_and_runs_in_stretches(tmp_path: Path) -> None:
    train, test = halves(data())
    recipe = climate.Recipe(FEATURES, members=2, epochs=30, width=8, batch=8, ridge=10.0)
    steps: list[int] = []
    model = climate.fit(train, recipe, on_step=lambda: steps.append(1))
    assert len(steps) == climate.training_steps(train, recipe) and model.kind == "domain"
    fine = climate.downscale(test, model)
    ridge = baselines.Bilinear(FEATURES).fit(train)
    truth = test["obs"]["tas"]
    assert (
        climate.score(fine, truth, model)["rmse"]
        < climate.score(ridge.predict(test), truth)["rmse"]
    )
    assert np.isnan(fine.values).sum() == len(fine)
    path = tmp_path / "m.safetensors"
    model.save(path)
    again = climate.Downscaler.load(path)
    assert again.dates == model.dates and repr(again) == repr(model)
    whole = climate.downscale(data(), again)
    for chunk in (1, 7, 100):
        np.testing.assert_array_equal(climate.downscale(data(), again, chunks=chunk), whole)
    gaps = climate.downscale(data(), replace(model, features=replace(FEATURES, gap="nan")))
    assert np.flatnonzero(np.isnan(gaps.values).all((1, 2))).tolist() == [0, 8, 16, 24, 32]
    with pytest.raises(BadConfig, match="whole lat axis"):
        climate.downscale(test, model, chunks={"lat": 2})
    moved = {**test, "deep": test["deep"].assign_coords(lat=test["deep"]["lat"] + 1)}
    with pytest.raises(UnsupportedShape, match="deep.psl"):
        climate.downscale(moved, model)
    np.testing.assert_allclose(
        climate.downscale(moved, model.standardized_by(moved)),
        climate.downscale(test, model.standardized_by(test)),
        atol=3,
    )
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError):
        climate.Downscaler.load(path)


def test_fit_takes_a_local_model_where_the_grids_nest() -> None:
    sets = made.pair(days=20)
    recipe = climate.Recipe(climate.Features("target", "tas"), epochs=2, width=4, batch=4)
    model = climate.fit(sets, recipe)
    assert model.kind == "local" and model.factor == 2 and model.conserve
    fine = climate.downscale(sets["coarse"], model)
    assert (
        climate.score(fine, sets["target"]["tas"], coarse=sets["coarse"]["tas"])["conservation"]
        <= 1e-6
    )
    assert climate.fit(sets, replace(recipe, kind="domain")).kind == "domain"
    with pytest.raises(UnsupportedShape, match="divides"):
        climate.fit(
            {**sets, "target": sets["target"].isel(lat=slice(1, None))},
            replace(recipe, kind="local"),
        )

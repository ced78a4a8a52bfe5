# SPDX-License-Identifier: Apache-2.0
"""Downscaling of daily temperature over Iberia: baselines, networks, and a warmer climate.

    python bench/climate.py iberia --rows baselines|networks|file|warming [--folds 4] [--csv NAME]

Forward split: the first fifteen winters to train, the last five to test; and `--folds` blocks of
winters, each tested once. Every hyper-parameter of a baseline is chosen on the last three training
winters of its split. Those of the networks (`RECIPE`), `trend` among them, were chosen on the last
three training winters of the forward split. "mean of N": the
mean of the networks of all seeds, which `Recipe(members=N)` puts into one file. "with kernel ridge"
is the plain mean of that and kernel ridge, a row of its own.

file: trains one file of all seeds on the forward split, without the trend, unless --model FILE is
there, and runs what it reads back from it. warming: CNRM-CM5's predictors, standardised by their
own 1983-2002, through that file: warming over land to 2081-2100 beside CNRM's own and RACMO's.

    python bench/climate.py era5 [--csv NAME]

A local model on real fields: hourly temperature over the United Kingdom from its area means over
4 x 4 cells. Needs TERNARY_OPS_DATA and the extras `climate` and `train`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import _climate as packs
import numpy as np
import torch
from _measure import command_line, headline, write_csv

from ternary_ops import climate
from ternary_ops.climate import baselines
from ternary_ops.climate.grid import bilinear

FIELD = climate.Features("eobs", "tas", inputs=packs.INPUTS)
OWN = replace(FIELD, inputs=(("gauss", "tas"),), season=False, previous=False)
FOUR = replace(FIELD, inputs=packs.INPUTS[:4], season=False, previous=False)
TREND = replace(FIELD, trend=True)
RECIPE = climate.Recipe(TREND, epochs=12, width=32, dropout=0.5, ridge=300.0)
BASELINES: dict[str, baselines.Baseline] = {
    "bilinear": baselines.Bilinear(OWN),
    "conservative": baselines.Conservative(OWN),
    "bilinear less bias": baselines.DeltaBias(OWN),
    "ridge, 4 fields": baselines.Ridge(FOUR),
    "ridge, + season, pr": baselines.Ridge(replace(FIELD, previous=False)),
    "ridge, + step before": baselines.Ridge(FIELD),
    "ridge, + trend": baselines.Ridge(TREND),
    "kernel ridge": baselines.KernelRidge(FIELD),
    "kernel ridge, + trend": baselines.KernelRidge(TREND),
}
Fields = list[tuple[Any, Any]]  # made and true, a pair for each split


def splits(folds: int) -> dict[str, list[tuple[packs.Data, packs.Data]]]:
    """Training and test data by the name of the split."""
    data = packs.iberia()
    return {"forward": [packs.forward(data)], f"{folds} folds": list(packs.folds(data, folds))}


def row(split: str, model: str, fields: Fields, **more: object) -> dict[str, object]:
    """Figures pooled over the tests of a split."""
    made, truth = (np.concatenate([np.asarray(f[i].values) for f in fields]) for i in (0, 1))
    figures = climate.compare(made.astype(np.float64), truth.astype(np.float64))
    rounded = {key: round(value, 4) for key, value in figures.items()}
    found = {"split": split, "model": model, **rounded, "chosen": "", "seconds": "", **more}
    print({k: v for k, v in found.items() if k != "values"}, flush=True)
    return found


def run_baselines(folds: int) -> Iterator[dict[str, object]]:
    """A row for every baseline and split."""
    for split, parts in splits(folds).items():
        for name, model in BASELINES.items():
            start, fields, chosen = time.perf_counter(), [], []
            for train, test in parts:
                fields.append((model.fit(train).predict(test), test["eobs"]["tas"]))
                chosen.append(" ".join(f"{k}={v:g}" for k, v in model.chosen.items()))
            yield row(
                split,
                name,
                fields,
                chosen="; ".join(chosen),
                seconds=round(time.perf_counter() - start, 1),
            )


def run_networks(folds: int, seeds: int) -> Iterator[dict[str, object]]:
    """Rows for single networks, for their mean, and for that with kernel ridge."""
    for split, parts in splits(folds).items():
        start = time.perf_counter()
        by_seed: list[Fields] = [[] for _ in range(seeds)]
        kernel: Fields = []
        for train, test in parts:
            truth = test["eobs"]["tas"]
            ridge = baselines.KernelRidge(TREND, strengths=(0.03,), widths=(0.05,)).fit(train)
            kernel.append((ridge.predict(test), truth))
            for seed, fields in enumerate(by_seed):
                model = climate.fit(train, replace(RECIPE, seed=seed))
                fields.append((climate.downscale(test, model), truth))
        took = round((time.perf_counter() - start) / seeds, 1)
        for seed, fields in enumerate(by_seed):
            yield row(split, f"network, seed {seed}", fields, seconds=took)
        mean = [
            (sum(f[i][0] for f in by_seed) / seeds, by_seed[0][i][1]) for i in range(len(parts))
        ]
        yield row(split, f"networks, mean of {seeds}", mean)
        both = [((a[0] + b[0]) / 2, a[1]) for a, b in zip(mean, kernel, strict=True)]
        yield row(split, f"networks, mean of {seeds}, with kernel ridge", both)


def run_file(path: str, seeds: int) -> Iterator[dict[str, object]]:
    """One file of all seeds without the trend, saved, loaded and scored."""
    train, test = packs.forward(packs.iberia())
    if not Path(path).exists():
        climate.fit(train, replace(RECIPE, features=FIELD, members=seeds)).save(path)
    fine = climate.downscale(test, path)
    fields = [(fine, test["eobs"]["tas"])]
    yield row("forward", f"one file of {seeds}, no trend", fields)


def land_mean(field: Any, land: Any) -> float:
    """Area-weighted mean over the cells of `land`, of the mean over all steps."""
    weights = np.cos(np.radians(land["lat"].values))[:, None] * land.values
    mean = np.asarray(field.mean("time").transpose("lat", "lon").values)
    return float((np.where(weights > 0, mean, 0) * weights).sum() / weights.sum())


def run_warming(path: str) -> Iterator[dict[str, object]]:
    """Change of winter temperature over land from 1983-2002 to 2081-2100, by three models."""
    model = climate.Downscaler.load(path)
    past, future = packs.gcm("hist"), packs.gcm("rcp85")
    land = np.isfinite(packs.iberia()["eobs"]["tas"]).any("time")
    ours = model.standardized_by(past)
    change = {"this": _change([climate.downscale(one, ours) for one in (past, future)], land)}
    onto = [_onto(one["gauss"]["tas"], land) for one in (past, future)]
    change["CNRM-CM5"] = _change(onto, land)
    change["RACMO22E"] = _nearest_change(land)
    for name, value in change.items():
        found = {"model": name, "warming": round(value, 3)}
        found["of_cnrm"] = round(value / change["CNRM-CM5"], 3)
        print(found)
        yield found


def _change(fields: list[Any], land: Any) -> float:
    return land_mean(fields[1], land) - land_mean(fields[0], land)


def _onto(field: Any, land: Any) -> Any:
    """A coarse field, interpolated bilinearly to the grid of `land`."""
    mean = field.mean("time")
    rows = bilinear(mean["lat"].values, land["lat"].values)
    columns = bilinear(mean["lon"].values, land["lon"].values)
    return land.copy(data=rows @ mean.values.astype(np.float64) @ columns.T).expand_dims("time")


def _nearest_change(land: Any) -> float:
    """RACMO's change, each cell of `land` from the nearest of its rotated grid."""
    past, future = (packs.racmo(period) for period in ("hist", "rcp85"))
    change = (future["tas"].mean("time") - past["tas"].mean("time")).values.ravel()
    lat, lon = past["lat"].values.ravel(), past["lon"].values.ravel()
    y, x = np.meshgrid(land["lat"].values, land["lon"].values, indexing="ij")
    near = [
        int(((lat - a) ** 2 + (np.cos(np.radians(a)) * (lon - b)) ** 2).argmin())
        for a, b in zip(y.ravel(), x.ravel(), strict=True)
    ]
    weights = np.cos(np.radians(y)) * land.values
    return float((change[near].reshape(y.shape) * weights).sum() / weights.sum())


def run_era5() -> Iterator[dict[str, object]]:
    """Rows of restoring area means over 4 x 4 cells: 500 hours to train, the last 150 to test."""
    data = packs.era5(4)
    train, test = (packs.at(data, np.arange(744)[part]) for part in (np.s_[:500], np.s_[-150:]))
    truth, low = test["fine"]["t2m"], test["coarse"]["t2m"]
    own = climate.Features("fine", "t2m", season=False, previous=False)
    for name, way in {
        "bilinear": baselines.Bilinear(own),
        "conservative": baselines.Conservative(own),
        "ridge": baselines.Ridge(own, strengths=(0.01, 0.1, 1.0, 10.0, 100.0)),
    }.items():
        fine = way.fit(train).predict(test)
        yield row("ERA5 x4", name, [(fine, truth)], chosen=str(way.chosen))
    model = climate.fit(train, climate.Recipe(own, width=24, epochs=40, batch=16, rate=3e-3))
    for conserve in (False, True):
        fine = climate.downscale(test, replace(model, conserve=conserve))
        error = climate.score(fine, truth, model, low)["conservation"]
        name = "local network" + (", conserved" if conserve else "")
        yield row("ERA5 x4", name, [(fine, truth)], chosen=f"conservation error {error:.1e}")
    tiles = climate.downscale(test, model, chunks=3)
    print("tiles of 3 x 3 give the bits of the whole:", np.array_equal(tiles.values, fine.values))


def main() -> int:
    """Print and write the rows asked for."""
    parser = command_line(__doc__, threads=1, csv=True)
    parser.add_argument("study", choices=["iberia", "era5"])
    rows_of = ["baselines", "networks", "file", "warming"]
    parser.add_argument("--rows", choices=rows_of, default="networks", help="of iberia")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="iberia.safetensors", help="file to write, or to read")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    headline()
    ways = {
        "baselines": lambda: run_baselines(options.folds),
        "networks": lambda: run_networks(options.folds, options.seeds),
        "file": lambda: run_file(options.model, options.seeds),
        "warming": lambda: run_warming(options.model),
    }
    rows = []
    for one in run_era5() if options.study == "era5" else ways[options.rows]():
        rows.append(one)
        if options.csv:
            write_csv(options.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

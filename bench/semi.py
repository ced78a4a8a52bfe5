# SPDX-License-Identifier: Apache-2.0
"""Semi-supervised super-resolution against the same host on pairs alone.

    python bench/semi.py era5 --pairs 50,100,250,400 --seeds 5
    python bench/semi.py images --pairs 50,100 --seeds 3
    python bench/semi.py report

era5: hourly temperature over Britain, four times coarser. Of the first 500 hours some are pairs,
the rest are by whole days small fields alone or large ones alone; the last 150 hours are the test.
The host (`host`) stops by pairs of its own and must reach ridge regression at as many pairs, or the
comparison is void; every method takes the same steps. Controls: kernel ridge, unpaired fields
shuffled in space (`shuffled`), of nights alone (`wrong hours`), the block mean in place of the
degrader (`box`), pseudo-pairs alone (`pseudo`); `oracle`: the host with all 500 pairs.

images: BSDS photos, twice as large, hidden degradation (blur, noise, JPEG); BSD100 is the test.

A run is a row of bench/results; rows that are there are not run again, and a run that was cut off
goes on from its checkpoint in --folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import _semi_era5 as era5
import _semi_images as images
import numpy as np
import torch
from _measure import command_line
from _semi_runs import Best, Table, interval

from ternary_ops import sr
from ternary_ops.sr import hosts
from ternary_ops.train.checkpoint import Checkpoint

ERA5, IMAGES = "semi_era5.csv", "semi_images.csv"
METHODS = ("host", "semi", "pseudo", "box", "shuffled", "wrong hours")
_NIGHT = (6, 18)  # hours of the day that are none
_UNTRAINED = dict.fromkeys(("stopped_at", "stop_rmse_k", "minutes", "steps"), "")
_EVERY = 50  # steps between two looks at the pairs that stop a training
HOST = hosts.HostWeights(pixel=1.0, perceptual=0.1, adversarial=1e-3)
SEMI = sr.SemiWeights(cycle_low=0.1, identity=0.0, ramp=0.1)
CONFIG = hosts.GANTrainConfig(steps=1200, rate=4e-3, batch=8, average=0.0)


def unpaired(data: era5.Data, parts: era5.Split, method: str, seed: int) -> list[np.ndarray]:
    """Hours of small and of large fields that a method is given."""
    found = [parts.low, parts.high]
    if method == "wrong hours":
        hour = data.dates.astype(int) % 24
        found = [h[(hour[h] < _NIGHT[0]) | (hour[h] >= _NIGHT[1])] for h in found]
    return found


def streams(data: era5.Data, parts: era5.Split, method: str, seed: int) -> sr.Streams:
    """Normalized fields [H, W, 1], and their dates."""
    mean, std = normalization(data, parts)
    rng = np.random.default_rng((seed, 7))

    def fields(values: np.ndarray, hours: np.ndarray, mixed: bool = False) -> list[np.ndarray]:
        made = ((values[hours] - mean) / std).astype(np.float32)[..., None]
        if mixed:
            made = np.stack([rng.permutation(f.reshape(-1)).reshape(f.shape) for f in made])
        return list(made)

    low, high = unpaired(data, parts, method, seed)

    def unpaired_fields(values: np.ndarray, hours: np.ndarray) -> sr.UnpairedPatches | None:
        if not len(hours):
            return None  # of the oracle, which has all pairs
        made = fields(values, hours, mixed=method == "shuffled")
        return sr.UnpairedPatches(made, turned=False, ids=data.dates[hours])

    small, large = (fields(v, parts.pairs) for v in (data.small, data.large))
    return sr.Streams(
        sr.PairedPatches(
            list(zip(small, large, strict=True)),
            era5.SCALE,
            turned=False,
            ids=data.dates[parts.pairs],
        ),
        *(unpaired_fields(*given) for given in ((data.small, low), (data.large, high))),
        held_out=data.dates[data.test],
        batch=8,
    )


def normalization(data: era5.Data, parts: era5.Split) -> tuple[float, float]:
    """Mean and standard deviation of the known pairs."""
    known = data.large[parts.known]
    return float(known.mean()), float(known.std())


def made_by(
    network: sr.SRNetwork, data: era5.Data, parts: era5.Split, hours: np.ndarray
) -> np.ndarray:
    """Large fields in kelvin, conserved."""
    mean, std = normalization(data, parts)
    x = torch.from_numpy((data.small[hours] - mean) / std)[:, None]
    with torch.inference_mode():
        made = network(x.float()).double()
    made = sr.conserve(made, x, era5.SCALE)
    return made[:, 0].numpy() * std + mean


def run_era5(
    data: era5.Data, parts: era5.Split, method: str, seed: int, folder: Path, steps: int
) -> dict[str, object]:
    """Train one method and score it."""
    host = era5.host(HOST, seed)
    known = method == "box"
    torch.manual_seed(seed + 1000)
    degrader = None if known else sr.Degrader(era5.SCALE, 1, width=16, blocks=1)
    weights = {"host": sr.SemiWeights.off(), "pseudo": sr.SemiWeights.pseudo_pairs()}
    semi = sr.SemiSR(
        host,
        degrader,
        weights.get(method, SEMI),
        streams=streams(data, parts, method, seed),
        degradation=(lambda large: sr.box_down(large, era5.SCALE)) if known else None,
    )
    name = f"era5-{len(parts.known)}-{seed}-{method.replace(' ', '-')}"
    truth = data.large[parts.stop]
    best = Best(
        host.generator, lambda net: era5.rmse(made_by(net, data, parts, parts.stop), truth), _EVERY
    )
    start = time.perf_counter()
    file = folder / f"{name}.checkpoint"
    semi.train(
        replace(CONFIG, seed=seed, steps=steps),
        checkpoint=Checkpoint(file, {"run": name, "steps": steps}, seconds=60),
        hooks=[best],
    )
    file.unlink()
    found = era5.scores(data, made_by(host.generator, data, parts, data.test))
    minutes = (time.perf_counter() - start) / 60
    return {**found, "stopped_at": best.step, "stop_rmse_k": best.least, "minutes": minutes}


def sweep_era5(options: argparse.Namespace) -> None:
    """Every run that is not in the table."""
    data, table = era5.load(), Table(ERA5)
    for seed in range(options.seeds):
        for count in (*options.pairs, era5.TRAIN):
            parts = era5.split(data, count, seed)
            if (count, seed, "ridge") not in table.rows:
                for name, made in era5.baselines(data, parts).items():
                    table.add((count, seed, name), {**era5.scores(data, made), **_UNTRAINED})
            methods = ("host",) if count == era5.TRAIN else options.methods
            for method in methods:
                if (count, seed, method) in table.rows:
                    continue
                found = run_era5(data, parts, method, seed, options.folder, options.steps)
                table.add((count, seed, method), {**found, "steps": options.steps})
                print(count, seed, method, table.rows[count, seed, method], flush=True)
    report(ERA5, "rmse_k", ("bilinear", "ridge", "kernel ridge", *METHODS))


def report(name: str, column: str, methods: Sequence[str]) -> None:
    """Means by method, and what was gained over the host, with paired 95 % intervals."""
    table = Table(name)
    counts = sorted({count for count, _, _ in table.rows})
    for count in counts:
        print(f"\n{count} pairs, {column}")
        own = table.values(count, "host", column)
        for method in methods:
            values = table.values(count, method, column)
            if not values:
                continue
            line = f"  {method:13} {np.mean(list(values.values())):8.4f}  {len(values)} seeds"
            if method != "host" and own.keys() & values.keys():
                off, half = interval(values, own)
                line += f"  against the host {off:+.4f} +- {half:.4f}"
            print(line)
        if name == ERA5:
            _verdict(table, count)


def _verdict(table: Table, count: int) -> None:
    values = {m: table.values(count, m, "rmse_k") for m in ("host", "ridge", "semi")}
    oracle = table.values(era5.TRAIN, "host", "rmse_k")
    if count == era5.TRAIN or not values["host"]:
        return
    means = {name: np.mean(list(v.values())) for name, v in values.items() if v}
    if means["host"] > means["ridge"]:
        print("  void: the host does not reach ridge")
    elif values["semi"] and oracle:
        gap = means["host"] - np.mean(list(oracle.values()))
        print(f"  closes {(means['host'] - means['semi']) / gap:.0%} of a gap of {gap:.4f} K")


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run what the command line asks for."""
    parser = command_line(__doc__)
    parser.add_argument("what", choices=("era5", "images", "report"))
    parser.add_argument("--pairs", type=_counts, default=[50, 100, 250, 400])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--folder", type=Path, default=Path("build/semi"))
    options = parser.parse_args()
    if options.what == "era5":
        sweep_era5(options)
    elif options.what == "images":
        images.sweep(options, Table(IMAGES))
    if options.what in ("images", "report"):
        report(IMAGES, "psnr", images.METHODS)
    if options.what == "report":
        report(ERA5, "rmse_k", ("bilinear", "ridge", "kernel ridge", *METHODS))


if __name__ == "__main__":
    main()

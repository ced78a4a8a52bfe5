# SPDX-License-Identifier: Apache-2.0
"""Milliseconds and the chart of bench/accuracy.py."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import torch
from _accuracy_runs import RUNS
from _cifar import load_cifar10
from _measure import NETWORKS, RESULTS, interleave, ratio, read_rows, spread, stopwatch, write_csv

import ternary_ops as tops
from ternary_ops._native import core
from ternary_ops.benchmark.timing import int8_baseline, torch_call


def measure(threads: int, rounds: int, isa: str) -> None:
    """One image through every file and through torch's int8 of its dense network, in turns.

    isa: forced on our programs; torch takes what the machine has. "": the same for ours.
    """
    from accuracy import trained

    core().set_isa(isa)
    parents = sorted({run.parent for run in RUNS.values()})
    missing = [name for name in parents if not (NETWORKS / f"{name}.safetensors").exists()]
    if missing:
        raise SystemExit(f"first: python bench/accuracy.py train {' '.join(missing)}")
    split = load_cifar10()
    x = split.x_test[:1].contiguous()
    timers, rows = {}, []
    for parent in parents:
        rival, note = int8_baseline(trained(parent), split.x_train[:256])
        if rival is None:
            raise SystemExit(f"torch int8 of {parent}: {note}")
        timers[f"torch int8 {parent}"] = stopwatch(torch_call(rival, x))
    names = [name for name in RUNS if (NETWORKS / f"{name}.safetensors").exists()]
    with tops.runtime.num_threads(threads):
        for name in names:
            program = tops.runtime.load(NETWORKS / f"{name}.safetensors")
            timers[name] = stopwatch(partial(program, np.asarray(x)))
        times = interleave(timers, rounds)
    for name in names:
        parent = RUNS[name].parent
        middle, low, high = spread(times[name])
        row: dict[str, Any] = {"run": name, "threads": threads, "isa": tops.runtime.isa()}
        row |= {"ms": round(middle, 4), "ms_p20": round(low, 4), "ms_p80": round(high, 4)}
        row["parent_ms"] = round(spread(times[parent])[0], 4)
        rival_times = times[f"torch int8 {parent}"]
        row["torch_int8_ms"] = round(spread(rival_times)[0], 4)
        row["faster_than_torch_int8"] = round(ratio(rival_times, times[name]), 2)
        row["faster_than_parent"] = round(ratio(times[parent], times[name]), 2)
        rows.append(row | {"torch": torch.__version__})
        print(*(f"{key} {value}" for key, value in rows[-1].items()))
    write_csv(f"accuracy_ms_{threads}{'_' * bool(isa)}{isa}.csv", rows)


def draw() -> None:
    """Accuracy against bytes and against milliseconds, one panel each for every architecture."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    ms = {row["run"]: float(row["ms"]) for row in read_rows(RESULTS / "accuracy_ms_1.csv")}
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(RESULTS / "accuracy.csv"):
        groups[row["parent"]].append(row)
    figure, axes = plt.subplots(
        2, len(groups), figsize=(4.6 * len(groups), 7.2), squeeze=False, layout="constrained"
    )
    for column, (parent, rows) in enumerate(groups.items()):
        for axis, label, values in (
            (axes[0][column], "file, kB", {r["run"]: float(r["bytes"]) / 1e3 for r in rows}),
            (axes[1][column], "ms an image, one core", ms),
        ):
            for row in (r for r in rows if r["run"] in values):
                point = (values[row["run"]], float(row["top1"]))
                dense = row["weights"] == "int8" and float(row["zeros"]) == 0
                axis.plot(*point, "s" if dense else "o", color="#8d99ae" if dense else "#2a6f97")
                short = "dense int8" if row["run"] == parent else row["run"].partition("-")[2]
                axis.annotate(short, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
            axis.set(xscale="log", xlabel=label, ylabel="top-1, %", title=parent)
    figure.savefig(RESULTS / "accuracy.svg")

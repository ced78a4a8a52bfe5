# SPDX-License-Identifier: Apache-2.0
"""Sparse from the first step: rules of growth under equal steps, and what they add to a step.

    python bench/sparse_training.py study --folder FOLDER [--arms rigl set static one_cycle]
    python bench/sparse_training.py time --folder FOLDER
    python bench/sparse_training.py report --folder FOLDER
    python bench/sparse_training.py overhead [--steps 300]

study: a ResNet-20 for CIFAR-10 (JPEG copy) from scratch, 8-bit weights and activations, 95 % empty
quads, as many in each layer as Erdos-Renyi kernels say, one cycle of the learning rate. Arms of one
seed begin with the same weights and see the same images in the same order. Each run keeps a
checkpoint in the folder, is repeated with the same bits where it was cut off, and ends as a program
and a row with the milliseconds of that program and its accuracy. time: all programs in one
interleaved run. report: bench/results/sparse_training.csv from rows that have been timed, means and
differences from static of pairs of one seed.

overhead: the same network in float32 on random images, every=100. Every variant takes one step a
round, in turns; the overhead is the ratio of summed processor times to those with a static mask and
without a Pruner, with a 95 % interval from resampled rounds. Peak memory is that of a process which
trains one variant. bench/results/sparse_training_overhead.csv.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _cifar import load_cifar10
from _measure import (
    CLOCKS,
    RESULTS,
    command_line,
    commit,
    interleave,
    read_rows,
    stopwatch,
    write_csv,
)
from torch import nn

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops._atomic import replace_file
from ternary_ops.data.classification import Split
from ternary_ops.program.layer_costs import call_ms
from ternary_ops.study.fit import Batches, accuracy, fit
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation
from ternary_ops.train.distributed import ALONE

TABLE, OVERHEAD = "sparse_training.csv", "sparse_training_overhead.csv"
ZEROS, EVERY, BATCH = 0.95, 100, 128
SPARSE = tops.TernaryConfig("int8", zeros=ZEROS, scope="erk")
DENSE = {"conv1": tops.TernaryConfig("int8"), "fc": tops.TernaryConfig("int8")}
# What each arm passes to the Pruner. "random" and "shuffled" are controls.
ARMS: dict[str, dict[str, Any]] = {
    **{rule: {"growth": rule} for rule in ("rigl", "set", "static")},
    "one_cycle": {"schedule": "one_cycle", "every": None},
    **{rule: {"growth": rule} for rule in ("snfs", "random", "shuffled")},
    "snip": {"criterion": "snip", "schedule": "constant"},
}
KEYS = ("arm", "seed", "epochs")
RESAMPLES = 2000


@dataclass(frozen=True)
class Run:
    """One training: the row's key."""

    arm: str
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm}-{self.epochs}-{self.seed}"

    @property
    def course(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig(
            *(self.epochs, 0.2, BATCH, self.seed),
            **{"optimizer": "sgd", "weight_decay": 5e-4, "bfloat16": True},
        )


def pruner_of(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, split: Split
) -> tops.prune.Pruner:
    """The arm's Pruner."""
    steps = run.course.steps(len(split.y_train))
    options = dict(ARMS[run.arm])
    if "growth" in options:
        options["growth"] = tops.prune.Growth(grow=options["growth"], seed=run.seed)
    if run.arm == "snip":
        views = Augmentation(split.x_train, reach=4, flip=True)
        batches = Batches(views, split.y_train, run.course, None, ALONE)
        options |= {"batches": [batches(0)[:2]], "loss": F.cross_entropy}
    return tops.prune.Pruner(
        model, total_steps=steps, optimizer=optimizer, **{"every": EVERY, **options}
    )


def train(run: Run, folder: Path, split: Split) -> dict[str, Any]:
    """The row of a run, trained to its end; its program beside it."""
    torch.manual_seed(run.seed)
    model = models.cifar_resnet(20)
    tops.quantize_(model, tops.plan(model, SPARSE, rules=DENSE))
    model = model.to(memory_format=torch.channels_last)
    optimizer = optimizer_for(model, run.course)
    pruner = pruner_of(run, model, optimizer, split)
    steps, done, start = pruner.total_steps, itertools.count(1), time.monotonic()

    def watch() -> None:
        step = next(done)
        if step % (steps // run.epochs) == 0:
            print(f"{run.name} {step}/{steps} {time.monotonic() - start:.0f} s", flush=True)

    begin = time.process_time()
    fit(
        *(model, Augmentation(split.x_train, reach=4, flip=True), split.y_train, run.course),
        *(optimizer, Distillation(label_smoothing=0.05)),
        pruner=pruner,
        calibration=split.x_train[::50],
        checkpoint=Checkpoint(folder / f"{run.name}.checkpoint", {"run": run.name}, seconds=60.0),
        on_step=watch,
    )
    seconds = time.process_time() - begin
    x = split.x_test[:1].contiguous()
    program = tops.compile(model, x).rounded()
    program.save(folder / f"{run.name}.safetensors")
    logits = torch.from_numpy(program(split.x_test[:].contiguous().numpy()))
    with runtime.num_threads(1):
        ms = call_ms(partial(program, x.numpy()))
    kept = [(g.total - g.count, g.total) for g in pruner._groups]
    return {
        **vars(run),
        "zeros": ZEROS,
        "occupied": round(sum(k for k, _ in kept) / sum(n for _, n in kept), 6),
        "top1": round(accuracy(logits.argmax(1), split.y_test), 2),
        "ms": round(ms, 4),
        "bytes": (folder / f"{run.name}.safetensors").stat().st_size,
        "cpu_s": round(seconds),
        "commit": commit(),
    }


def runs_of(options: argparse.Namespace) -> list[Run]:
    """All that are asked for; arms last, so that every seed has all of them early."""
    product = itertools.product(options.seeds, options.arms)
    return [Run(arm, seed, options.epochs) for seed, arm in product]


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the runs that are done."""
    files = [options.folder / f"{run.name}.json" for run in runs_of(options)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def study(options: argparse.Namespace) -> None:
    """Train every run that has no row in the folder yet."""
    split = load_cifar10()
    few = torch.randperm(len(split.y_train), generator=torch.Generator().manual_seed(0))
    few = few[: options.images]
    split = Split(split.x_train[few], split.y_train[few], split.x_test, split.y_test)
    for run in runs_of(options):
        file = options.folder / f"{run.name}.json"
        if not file.exists():
            row = train(run, options.folder, split)
            replace_file(file, lambda target, row=row: target.write_text(json.dumps(row)))
            print(row, flush=True)


def time_all(options: argparse.Namespace) -> None:
    """Milliseconds of all programs, taking turns."""
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    rows = rows_of(options)
    names = [Run(*(row[key] for key in KEYS)).name for row in rows]
    with runtime.num_threads(1):
        programs = {n: runtime.load(options.folder / f"{n}.safetensors") for n in names}
        timers = {n: stopwatch(partial(p, x), CLOCKS["cpu"]) for n, p in programs.items()}
        times = interleave(timers, options.rounds)
    for row, name in zip(rows, names, strict=True):
        row |= {"ms": round(statistics.median(times[name]), 4), "isa": runtime.isa()}
        text = json.dumps(row)
        file = options.folder / f"{name}.json"
        replace_file(file, lambda target, text=text: target.write_text(text))
        print(row, flush=True)


def report(options: argparse.Namespace) -> None:
    """Write the table; print means, and differences from static."""
    rows = [row for row in rows_of(options) if "isa" in row]
    written = {tuple(row[key] for key in KEYS): row for row in read_rows(RESULTS / TABLE)}
    written |= {tuple(str(row[key]) for key in KEYS): row for row in rows}
    if written:
        print("written:", write_csv(TABLE, list(written.values())))
    top1 = {(row["arm"], row["seed"]): row["top1"] for row in rows}
    for arm in options.arms:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        pairs = [
            row["top1"] - top1["static", row["seed"]]
            for row in mine
            if ("static", row["seed"]) in top1
        ]
        mean, ms = (statistics.mean(row[key] for row in mine) for key in ("top1", "ms"))
        spread = statistics.stdev(row["top1"] for row in mine) if len(mine) > 1 else 0.0
        ahead = " ".join(f"{pair:+.2f}" for pair in pairs)
        print(f"{arm:10} {len(mine)} seeds  {mean:.2f} +- {spread:.2f} %  {ms:.4f} ms  {ahead}")


def stepper(growth: str, batch: int) -> Callable[[], float]:
    """A timer of one training step, milliseconds of processor time; growth "none": no Pruner."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))
    model = models.cifar_resnet(20).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    pruner = None
    if growth != "none":
        options = {"scope": "erk", "every": EVERY, "growth": growth, "skip": ["conv1", "fc"]}
        pruner = tops.prune.Pruner(
            *(model, None, 10_000, ZEROS), pattern="1x4", optimizer=optimizer, **options
        )

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
        return (time.process_time() - start) * 1e3

    return step


def peak_mib(growth: str, steps: int, batch: int) -> float:
    """Peak memory of a process that trains a variant, above what it had before."""
    command = [sys.executable, __file__, "peak", "--rules", growth, "--steps", str(steps)]
    command += ["--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(growth: str, steps: int, batch: int) -> None:
    """What peak_mib reads."""

    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

    before = resident("VmRSS")
    step = stepper(growth, batch)
    for _ in range(steps):
        step()
    print(resident("VmHWM") - before)


def interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Ratio of the sums of paired times, and its 95 % interval from resampled rounds."""
    chosen = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    ratios = a[chosen].sum(1) / b[chosen].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(a.sum() / b.sum()), float(low), float(high)


def overhead(options: argparse.Namespace) -> None:
    """Time and memory of rules of growth beside a static mask and no Pruner."""
    rules = ["none", "static", *options.rules]
    times = interleave({rule: stepper(rule, options.batch) for rule in rules}, options.steps)
    taken = {rule: np.array(values) for rule, values in times.items()}
    peaks = {rule: peak_mib(rule, EVERY + 1, options.batch) for rule in rules}
    rows = []
    for rule in rules:
        row: dict[str, Any] = {"growth": rule, "every": EVERY, "steps": options.steps}
        row["batch"] = options.batch
        row["ms"] = round(float(taken[rule].mean()), 2)
        for other in ("static", "none"):
            ratio, low, high = interval(taken[rule], taken[other])
            row |= {f"to_{other}": round(ratio, 4), f"to_{other}_low": round(low, 4)}
            row[f"to_{other}_high"] = round(high, 4)
        row |= {"peak_mib": round(peaks[rule], 1)}
        row["peak_to_none"] = round(peaks[rule] / peaks["none"], 4)
        rows.append(row)
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)
    print("written:", write_csv(OVERHEAD, rows))


def main() -> int:
    """Run the command."""
    parser = command_line(__doc__, rounds=21, threads=1)
    parser.add_argument("command", choices=("study", "time", "report", "overhead", "peak"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[:4], choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=50_000, help="of an epoch, for a rehearsal")
    parser.add_argument("--folder", type=Path, help="checkpoints, programs and rows")
    parser.add_argument("--rules", nargs="+", default=["rigl", "set", "snfs"])
    parser.add_argument("--batch", type=int, default=BATCH, help="of overhead")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "peak":
        print_peak(options.rules[0], options.steps, options.batch)
    elif options.command == "overhead":
        overhead(options)
    elif options.folder is None:
        parser.error(f"{options.command} needs --folder")
    else:
        options.folder.mkdir(exist_ok=True, parents=True)
        {"study": study, "time": time_all, "report": report}[options.command](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Equal time: a search over widths, zeros and bits beside narrow networks, zeros and widths alone.

    python bench/equal_time.py choose --folder FOLDER
    python bench/equal_time.py train --folder FOLDER [--arms search narrow] [--seeds 0 1 2]
    python bench/equal_time.py time --folder FOLDER
    python bench/equal_time.py report --folder FOLDER

The ResNet-20 of bench/results/parents, for CIFAR-10 (JPEG copy). A budget is the milliseconds of
the network with a share of its channels, all groups alike, dense at 8 bits: the arm "narrow". The
other arms are asked for that time: "search" chooses widths, zeros and bits of every layer, "zeros"
zeros and bits at full width, "width" widths alone, dense at 8 bits. All begin with the parent's
weights, learn from one ResNet-56 and see the same images in the same order, for as many steps.

choose: on --isa, avx2 by default. train: each run keeps a checkpoint in the folder and is repeated
with the same bits where it was cut off. time: all programs in one interleaved run, on each
instruction set that this machine has. report: bench/results/equal_time.csv, and the table of means
with differences of pairs of one seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _cifar import load_cifar10
from _measure import (
    CLOCKS,
    PARENTS,
    RESULTS,
    command_line,
    commit,
    interleave,
    read_rows,
    stopwatch,
    write_csv,
)
from safetensors.torch import load_file
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops._atomic import replace_file
from ternary_ops.budget import Found
from ternary_ops.data.classification import Split
from ternary_ops.program.layer_costs import call_ms
from ternary_ops.prune.targets import can_prune
from ternary_ops.study.fit import accuracy, fit
from ternary_ops.train.augment import Augmentation, CachedLogits
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation

TABLE = "equal_time.csv"
INT8 = tops.TernaryConfig("int8", zeros=0.0)
# What each arm lets the search choose.
ARMS: dict[str, dict[str, Any]] = {
    "search": {},
    "narrow": {},
    "zeros": {"vary": ("zeros", "bits")},
    "width": {"vary": ("widths",), "config": INT8},
}
SHARES = (0.75, 0.5)  # of the channels of "narrow"
SAMPLES = 64
TEMPERATURE, SHARE, SMOOTHING = 4.0, 0.7, 0.05
ISAS = ("avx2", "avx512vnni")
KEYS = ("arm", "share", "seed", "epochs")


@dataclass(frozen=True)
class Run:
    """One training: the row's key."""

    arm: str
    share: float
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm}-{self.share:g}-{self.epochs}-{self.seed}"

    @property
    def course(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig(
            *(self.epochs, 0.1, 128, self.seed),
            **{"optimizer": "sgd", "weight_decay": 2e-4, "bfloat16": True},
        )


def network(depth: int) -> nn.Module:
    """A committed dense network."""
    model = models.cifar_resnet(depth)
    model.load_state_dict(load_file(PARENTS / f"resnet{depth}.safetensors"))
    return model.eval()


def shuffled(split: Split) -> Split:
    """The training images in another order: the pack has them class by class."""
    order = torch.randperm(len(split.y_train), generator=torch.Generator().manual_seed(0))
    return Split(split.x_train[order], split.y_train[order], split.x_test, split.y_test)


def narrow(model: nn.Module, x: Tensor, share: float) -> None:
    """That share of the channels of every group, those of the largest norm; dense at 8 bits."""
    groups = tops.prune.groups(model, x)
    scores = tops.prune.filter_score("l2")(groups, model)
    tops.prune.remove_(model, x, tops.prune.choose(groups, scores, widths=share, scope="layer"))
    tops.quantize_(model, tops.plan(model, INT8, example=x))


def narrow_ms(x: Tensor, share: float) -> float:
    """What it takes."""
    model = network(20)
    narrow(model, x, share)
    tops.calibrate(model, [x], method="minmax")
    program = tops.compile(model, x, allow_unfinished=True)
    return call_ms(partial(program, x.numpy()))


def student(run: Run, folder: Path, x: Tensor) -> nn.Module:
    """The network of a run, before training."""
    model = network(20)
    if run.arm == "narrow":
        narrow(model, x, run.share)
    else:
        text = (folder / f"{run.arm}-{run.share:g}.json").read_text()
        Found.from_dict(json.loads(text), x).apply_(model)
    return model.to(memory_format=torch.channels_last)


def choose(options: argparse.Namespace, split: Split) -> None:
    """The networks of all arms that are searched for, once."""
    x, data = split.x_test[:1], [split.x_train[:SAMPLES]]
    for share, arm in itertools.product(SHARES, options.arms):
        file = options.folder / f"{arm}-{share:g}.json"
        if arm == "narrow" or file.exists():
            continue
        budget = options.folder / f"ms-{share:g}.json"
        with runtime.force_isa(options.isa), runtime.num_threads(1):
            if not budget.exists():
                ms = narrow_ms(x, share)
                replace_file(budget, partial(_write, json.dumps(ms)))
            ms = json.loads(budget.read_text())
            state = options.folder / f"state-{'int8' if arm == 'width' else 'all'}.json"
            found = tops.search(network(20), x, data, target_ms=ms, state=state, **ARMS[arm])
        print(f"{arm} at {ms:.4f} ms\n{found}\n", flush=True)
        replace_file(file, partial(_write, json.dumps(found.to_dict())))


def _write(text: str, target: Path) -> None:
    target.write_text(text)


def train(run: Run, options: argparse.Namespace, split: Split) -> dict[str, Any]:
    """The row of a run, trained to its end; its program beside it."""
    x, course = split.x_test[:1], run.course
    torch.manual_seed(run.seed)
    model = student(run, options.folder, x)
    views = Augmentation(split.x_train, reach=4, flip=True)
    steps = course.steps(len(split.y_train))
    optimizer = optimizer_for(model, course)
    pruner = None
    if can_prune(model):
        pruner = tops.prune.Pruner(model, total_steps=steps, optimizer=optimizer)
    done, start = itertools.count(1), time.monotonic()

    def watch() -> None:
        step = next(done)
        if step % (steps // run.epochs) == 0:
            print(f"{run.name} {step}/{steps} {time.monotonic() - start:.0f} s", flush=True)

    begin = time.process_time()
    fit(
        *(model, views, split.y_train, course, optimizer),
        Distillation(None, TEMPERATURE, SHARE, SMOOTHING),
        teacher=CachedLogits(network(56), views, options.folder / "logits"),
        pruner=pruner,
        calibration=split.x_train[::50],
        checkpoint=Checkpoint(options.folder / f"{run.name}.checkpoint", {"run": run.name}),
        on_step=watch,
    )
    if pruner is None:
        tops.calibrate(model, [split.x_train[::50]])
    program = tops.compile(model, x).rounded()
    program.save(options.folder / f"{run.name}.safetensors")
    logits = torch.from_numpy(program(split.x_test[:].contiguous().numpy()))
    return {
        **vars(run),
        "top1": round(accuracy(logits.argmax(1), split.y_test), 2),
        "bytes": (options.folder / f"{run.name}.safetensors").stat().st_size,
        "cpu_s": round(time.process_time() - begin),
        "commit": commit(),
    }


def runs_of(options: argparse.Namespace) -> list[Run]:
    """All that are asked for; seeds last, so that every arm has one early."""
    product = itertools.product(options.seeds, SHARES, options.arms)
    return [Run(arm, share, seed, options.epochs) for seed, share, arm in product]


def run_of(row: Mapping[str, Any]) -> Run:
    """The run of a row."""
    return Run(*(row[key] for key in KEYS))


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the runs that are done."""
    files = [options.folder / f"{run.name}.json" for run in runs_of(options)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def time_all(options: argparse.Namespace) -> None:
    """Milliseconds of all programs, taking turns, one file an instruction set."""
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    names = [run_of(row).name for row in rows_of(options)]
    for isa in ISAS:
        if isa not in runtime.available_isas():
            continue
        with runtime.force_isa(isa), runtime.num_threads(1):
            programs = {n: runtime.load(options.folder / f"{n}.safetensors") for n in names}
            timers = {n: stopwatch(partial(p, x), CLOCKS["cpu"]) for n, p in programs.items()}
            times = interleave(timers, options.rounds)
        found = {name: statistics.median(values) for name, values in times.items()}
        replace_file(options.folder / f"times-{isa}.json", partial(_write, json.dumps(found)))
        print(isa, json.dumps(found, indent=1), flush=True)


def report(options: argparse.Namespace) -> None:
    """Write the table, and print means and differences."""
    rows = rows_of(options)
    for isa in ISAS:
        file = options.folder / f"times-{isa}.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        for row in rows:
            name = run_of(row).name
            row[f"ms_{isa}"] = round(found[name], 4) if name in found else ""
    written = {tuple(row[key] for key in KEYS): row for row in read_rows(RESULTS / TABLE)}
    written |= {tuple(str(row[key]) for key in KEYS): row for row in rows}
    print("written:", write_csv(TABLE, list(written.values())))
    for share in SHARES:
        mine = {(r["arm"], r["seed"]): r for r in rows if r["share"] == share}
        for arm in options.arms:
            tops1 = {seed: r["top1"] for (name, seed), r in mine.items() if name == arm}
            pairs = [
                mine["search", seed]["top1"] - top1
                for seed, top1 in tops1.items()
                if ("search", seed) in mine
            ]
            if not tops1:
                continue
            ms = {i: [r[f"ms_{i}"] for (n, _), r in mine.items() if n == arm] for i in ISAS}
            ahead = f"search ahead by {', '.join(f'{p:+.2f}' for p in pairs)}"
            print(f"{share:g} {arm:7} {statistics.mean(tops1.values()):.2f} {ms} {ahead}")


def main() -> int:
    """Run the command."""
    parser = command_line(__doc__, rounds=21, threads=1)
    parser.add_argument("command", choices=("choose", "train", "time", "report"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--isa", default="avx2", help="whose milliseconds count (default avx2)")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and programs")
    parser.add_argument("--images", type=int, default=50_000, help="of an epoch, for a rehearsal")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(exist_ok=True, parents=True)
    if options.command == "time":
        time_all(options)
    elif options.command == "report":
        report(options)
    else:
        split = shuffled(load_cifar10())
        choose(options, split)
        few = slice(options.images)
        split = replace(split, x_train=split.x_train[few], y_train=split.y_train[few])
        for run in runs_of(options) if options.command == "train" else ():
            file = options.folder / f"{run.name}.json"
            if not file.exists():
                row = train(run, options, split)
                replace_file(file, partial(_write, json.dumps(row)))
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

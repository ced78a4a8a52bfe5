# SPDX-License-Identifier: Apache-2.0
"""Filters removed in mid-training: SbF beside the L1 norm and the dense network, equal steps.

    python bench/filters.py train --arms dense sbf l1 --seeds 0 1 2 --folder FOLDER
    python bench/filters.py report --folder FOLDER
    python bench/filters.py steps --network resnet20

A ResNet for CIFAR-10, from scratch, one cycle of the learning rate. Arms of one seed begin with the
same weights and see the same images in the same order; those that remove filters do so after 60 %
of the steps, until half of the parameters are left, and train on to the same last step.

train: each run keeps a checkpoint in the folder, is repeated with the same bits where it was cut
off, and ends as a file with its row. report: bench/results/filters.csv from these rows, and the
table of means with paired differences. steps: processor time of a training step, dense, with SbF
and after it has removed half of the parameters, in turns: bench/results/filter_steps.csv.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from _cifar import load_cifar10
from _measure import CLOCKS, command_line, commit, interleave, ratio, stopwatch, write_csv
from torch import Tensor, nn

from ternary_ops import models
from ternary_ops._atomic import replace_file
from ternary_ops.data.classification import Split
from ternary_ops.prune import SbF, choose, filter_score, groups, remove_
from ternary_ops.prune.filter_attention import HEADS, FilterAttention
from ternary_ops.study.fit import Batches, accuracy, predictions
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation
from ternary_ops.train.loop import TrainLoop
from ternary_ops.train.rates import one_cycle

# Share of the parameters that is left, and of the steps after which filters go.
LEFT, REMOVAL = 0.5, 0.6
STRENGTH = 1.0  # with which the controller begins
# "permuted": heads see the weights of other filters; "gates": they see none. "sbf-free": no price.
# "narrow": fewer channels from the start, as many parameters.
ARMS = ("dense", "sbf", "l1", "permuted", "gates", "sbf-free", "narrow")
NARROW = 11  # channels of the first stage of a ResNet-20 or 56 with half the parameters


@dataclass(frozen=True)
class Run:
    """One training: the row's key."""

    network: str
    arm: str
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.network}-{self.arm}-{self.epochs}-{self.seed}"

    @property
    def course(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig(
            *(self.epochs, 0.2, 128, self.seed),
            **{"optimizer": "sgd", "weight_decay": 5e-4, "bfloat16": True},
        )


def filters_of(run: Run, model: nn.Module, x: Tensor, steps: int) -> SbF | OneShot | None:
    """What removes filters in a run."""
    at = round(REMOVAL * steps)
    if run.arm in ("dense", "narrow"):
        return None
    if run.arm == "l1":
        return OneShot(model, x, at)
    if run.arm == "sbf-free":
        return SbF(model, x, 0.0, at)
    head = {"sbf": "attention"}.get(run.arm, run.arm)
    return SbF(model, x, STRENGTH, at, target_params=LEFT, head=head)


def train(run: Run, folder: Path, split: Split) -> dict[str, Any]:
    """The row of a run, trained to its end."""
    torch.manual_seed(run.seed)
    width = NARROW if run.arm == "narrow" else 16
    model = models.cifar_resnet(int(run.network.removeprefix("resnet")), width=width)
    model = model.to(memory_format=torch.channels_last)
    course = run.course
    steps = course.steps(len(split.y_train))
    optimizer = optimizer_for(model, course)
    filters = filters_of(run, model, split.x_test[:1], steps)
    if isinstance(filters, SbF):
        optimizer.add_param_group({"params": filters.parameters(), "weight_decay": 0.0})
    loop = TrainLoop(
        *(model, optimizer, one_cycle(optimizer, course.rate, steps, course.warmup), steps),
        filters=filters,
        bfloat16=course.bfloat16,
        checkpoint=Checkpoint(folder / f"{run.name}.checkpoint", {"run": run.name}),
        on_step=Watcher(run, steps, model, split),
    )
    loss = Distillation(label_smoothing=0.05)
    views = Augmentation(split.x_train, reach=4, flip=True)
    batches = Batches(views, split.y_train, course, None, loop.ranks)
    begin = time.process_time()
    loop.run(batches, lambda network, batch: loss(network, *batch))
    return {
        **vars(run),
        "parameters": sum(p.numel() for p in model.parameters()),
        "top1": round(accuracy(predictions(model, split.x_test), split.y_test), 2),
        "cpu_s": round(time.process_time() - begin),
        "commit": commit(),
    }


class Permuted(FilterAttention):
    """Attention that sees the filters in another order, always the same one."""

    def __init__(self, name: str, filters: int, inputs: int) -> None:
        super().__init__(name, filters, inputs)
        self.order = torch.randperm(filters, generator=torch.Generator().manual_seed(filters))

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows[self.order])


HEADS.add("permuted", Permuted)


class OneShot:
    """The filters of the lowest L1 norm go at one step, the same share of every group."""

    def __init__(self, model: nn.Module, x: Tensor, steps: int) -> None:
        self.model, self.x, self.steps, self.done = model, x, steps, 0
        self.kept: dict[str, Tensor] | None = None

    def loss(self) -> Tensor:
        return torch.zeros(())

    def step(self) -> None:
        self.done += 1

    @property
    def due(self) -> bool:
        return self.done == self.steps

    def finish_(self, optimizer: torch.optim.Optimizer) -> None:
        found = groups(self.model, self.x)
        scores = filter_score("l1")(found, self.model)
        self._remove(choose(found, scores, params=LEFT, scope="layer"), optimizer)

    def _remove(self, kept: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        removal = remove_(self.model, self.x, kept, optimizer)
        self.kept = dict(removal.kept)
        print(removal, flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "kept": self.kept}

    def load_state_dict(self, state: Any, optimizer: torch.optim.Optimizer) -> None:
        if state["kept"] is not None:
            self._remove(state["kept"], optimizer)
        self.done = state["done"]


class Watcher:
    """A line after each epoch: the score on a fifth of the test images."""

    def __init__(self, run: Run, steps: int, model: nn.Module, split: Split) -> None:
        self.run, self.steps, self.model, self.split = run, steps, model, split
        self.step, self.start = 0, time.monotonic()

    def __call__(self) -> None:
        self.step += 1
        if self.step % (self.steps // self.run.epochs):
            return
        score = accuracy(predictions(self.model, self.split.x_test[::5]), self.split.y_test[::5])
        self.model.train()
        spent = time.monotonic() - self.start
        print(f"{self.run.name} {self.step}/{self.steps} {score:.1f} % {spent:.0f} s", flush=True)


def rows_of(options: argparse.Namespace) -> None:
    """Train every run that has no row in the folder yet."""
    options.folder.mkdir(exist_ok=True, parents=True)
    split = load_cifar10()
    for seed, arm in itertools.product(options.seeds, options.arms):
        run = Run(options.network, arm, seed, options.epochs)
        file = options.folder / f"{run.name}.json"
        if not file.exists():
            row = train(run, options.folder, split)
            replace_file(file, lambda target, row=row: target.write_text(json.dumps(row)))
            print(row, flush=True)


def report(options: argparse.Namespace) -> None:
    """Rows of the folder as a table of results, and means with differences from the dense arm."""
    rows = [json.loads(file.read_text()) for file in sorted(options.folder.glob("*.json"))]
    print("written:", write_csv("filters.csv", rows))
    found = {(r["network"], r["epochs"], r["arm"], r["seed"]): r for r in rows}
    for network, epochs, arm in sorted({key[:3] for key in found}):
        mine = {key[3]: r for key, r in found.items() if key[:3] == (network, epochs, arm)}
        pairs = [
            r["top1"] - found[network, epochs, "dense", seed]["top1"]
            for seed, r in mine.items()
            if (network, epochs, "dense", seed) in found
        ]
        top1, left = (mean(r[name] for r in mine.values()) for name in ("top1", "parameters"))
        shown = " ".join(f"{gap:+.2f}" for gap in pairs)
        print(
            f"{network:9} {epochs:3} {arm:9} {len(mine)} seeds {top1:.2f} % {left:9,.0f}  {shown}"
        )


def time_steps(options: argparse.Namespace) -> None:
    """Processor time of steps on 64 random images, and of one image in eval mode."""
    x, y = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    networks: dict[str, tuple[nn.Module, SbF | None]] = {}
    for arm in ("dense", "sbf", "removed"):
        model = models.cifar_resnet(int(options.network.removeprefix("resnet"))).train()
        sbf = None if arm == "dense" else SbF(model, x[:1], STRENGTH, 1000, LEFT)
        if sbf is not None and arm == "removed":
            sbf.finish_()
            sbf = None
        networks[arm] = model, sbf

    def step(model: nn.Module, sbf: SbF | None) -> None:
        loss = nn.functional.cross_entropy(model.train()(x), y)
        heads = [] if sbf is None else list(sbf.parameters())
        (loss if sbf is None else loss + sbf.loss()).backward()
        for parameter in (*model.parameters(), *heads):
            parameter.data.add_(parameter.grad, alpha=-1e-3)  # type: ignore[arg-type]
            parameter.grad = None
        if sbf is not None:
            sbf.step()

    def call(model: nn.Module) -> None:
        with torch.no_grad():
            model.eval()(x[:1])

    timers = {arm: stopwatch(partial(step, *pair), CLOCKS["cpu"]) for arm, pair in networks.items()}
    calls = {
        arm: stopwatch(partial(call, net), CLOCKS["cpu"]) for arm, (net, _) in networks.items()
    }
    steps = interleave(timers, options.rounds, warmup=1)
    single = interleave(calls, 5 * options.rounds, warmup=2)
    rows = [
        {
            **{"network": options.network, "arm": arm, "step_ms": round(median(steps[arm]), 1)},
            "step_of_dense": round(ratio(steps[arm], steps["dense"]), 3),
            "call_ms": round(median(single[arm]), 3),
            "call_of_dense": round(ratio(single[arm], single["dense"]), 3),
            "commit": commit(),
        }
        for arm in networks
    ]
    print(*rows, sep="\n")
    write_csv("filter_steps.csv", rows)


def main() -> int:
    """Run the command."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("command", choices=("train", "report", "steps"))
    parser.add_argument("--network", default="resnet20", choices=("resnet20", "resnet56"))
    parser.add_argument("--arms", nargs="+", default=["dense"], choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("bench/runs"), help="of checkpoints")
    parser.add_argument("--rounds", type=int, default=9, help="of steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"train": rows_of, "report": report, "steps": time_steps}[options.command](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

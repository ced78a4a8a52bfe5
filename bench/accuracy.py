# SPDX-License-Identifier: Apache-2.0
"""Accuracy against bytes and milliseconds: CIFAR-10 networks, dense, pruned and ternary.

    python bench/accuracy.py train resnet20 resnet56 --threads 1

Runs are named and seeded; each keeps a checkpoint and its trained weights under --folder, so that
one that was cut off goes on with the same bits when the command is repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _accuracy_runs import RUNS, Run
from _cifar import folder, keep_shortcuts_, load_cifar10, load_resnet
from torch import nn

from ternary_ops import models
from ternary_ops.quantize.distill import Distillation
from ternary_ops.study.checkpoint import Checkpoint
from ternary_ops.study.data import Split
from ternary_ops.study.fit import accuracy, fit, optimizer_for, predictions
from ternary_ops.study.views import Views


def build(run: Run) -> nn.Module:
    if run.network == "resnet18":
        return models.cifar_resnet18(run.width)
    return models.cifar_resnet(int(run.network.removeprefix("resnet")), width=run.width)


def trained(name: str, runs: Path) -> nn.Module:
    """The network of a finished dense run."""
    model = build(RUNS[name])
    model.load_state_dict(torch.load(runs / f"{name}.pt", weights_only=True))
    return model.eval().to(memory_format=torch.channels_last)


def start(run: Run, runs: Path, split: Split) -> nn.Module:
    if run.start == "":
        torch.manual_seed(run.course.seed)
        return build(run)
    if run.start == "original":
        model = load_resnet(folder() / "cifar10_resnets" / f"{run.network}.npz")
        keep_shortcuts_(model, split.x_train[::100])
        return model
    return trained(run.start, runs)


def train(run: Run, runs: Path, split: Split) -> None:
    done = runs / f"{run.name}.pt"
    if done.exists():
        print(run.name, "is done")
        return
    model = start(run, runs, split).to(memory_format=torch.channels_last)
    views = Views(split.x_train, reach=4, flip=True, count=16)
    optimizer = optimizer_for(model, run.course)
    checkpoint = Checkpoint(runs / f"{run.name}.checkpoint", {"run": repr(run)})
    steps = run.course.steps(len(split.y_train))
    state = {"step": 0, "start": time.time()}

    def tick() -> None:
        state["step"] += 1
        if state["step"] % 390 == 0:
            score = accuracy(predictions(model, split.x_test[::5]), split.y_test[::5])
            model.train()
            seconds = time.time() - state["start"]
            print(f"{run.name} {state['step']}/{steps} {seconds:.0f}s {score:.2f}", flush=True)

    fit(
        model,
        views,
        split.y_train,
        run.course,
        optimizer,
        Distillation(label_smoothing=0.05),
        checkpoint=checkpoint,
        tick=tick,
    )
    torch.save(model.state_dict(), done)
    print(run.name, accuracy(predictions(model, split.x_test), split.y_test), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("train",))
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("bench/runs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    split = load_cifar10()
    options.folder.mkdir(exist_ok=True, parents=True)
    for name in options.runs:
        train(RUNS[name], options.folder, split)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Convolution, attention and token MLPs in one skeleton (SPACH) at equal parameters.

    python bench/spach.py study --folder FOLDER [--arms ...] [--seeds 0 1 2]
    python bench/spach.py report --folder FOLDER

study: networks of three families and two hybrids on Tiny ImageNet (100 classes, 32 px), patches of
2, blocks 1, 1, 3, 1 by stage, about 1.1 M parameters each, 20 epochs from scratch by one recipe;
runs of one seed see the same images in the same order. Controls: without the depthwise bypass,
attention removed before the first step, labels shuffled. Each run keeps a checkpoint in the folder,
is repeated with the same bits where it was cut off, and ends as a file with its row.
report: bench/results/spach.csv from these rows, and verdicts on three findings of the paper
(the bypass helps; token MLPs overfit more than convolutions; convolutions generalize better than
attention at one training loss) with effect sizes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _cifar import load_tiny_imagenet
from _measure import command_line, commit
from _spach_report import report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ternary_ops._atomic import replace_file
from ternary_ops.data.classification import Split
from ternary_ops.models import Spach, SpachConfig, costs_by_part
from ternary_ops.models.spach_networks import Stage
from ternary_ops.study.fit import Batches, accuracy, predictions
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint, Stateful
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.loop import Hook, TrainLoop
from ternary_ops.train.rates import one_cycle

SIDE, CLASSES = 32, 100
_DEPTHS = (1, 1, 3, 1)
# Widths of the first stage that give 1.07 to 1.10 M parameters.
_WIDTHS = {"conv": 40, "attention": 31, "mlp": 40, "hybrid": 32, "conv-mlp": 40}
# First what the study is about, then its controls.
ARMS = (
    *_WIDTHS, "attention-no-bypass", "mlp-no-bypass", "attention-removed", "hybrid-shuffled",
)  # fmt: skip
_HYBRIDS = {"hybrid": "attention", "conv-mlp": "mlp"}


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
        return TrainConfig(*(self.epochs, 2e-3, 128, self.seed), weight_decay=0.05, clip=5.0)


def _family(kind: str) -> tuple[Stage, ...]:
    """Convolution in the first stage, as in the paper."""
    return tuple(((kind if i else "conv", depth),) for i, depth in enumerate(_DEPTHS))


def _hybrid(kind: str) -> tuple[Stage, ...]:
    """Convolution, then two blocks of the third stage and the fourth of another kind."""
    one: Stage = (("conv", 1),)
    return one, one, (("conv", 1), (kind, _DEPTHS[2] - 1)), ((kind, _DEPTHS[3]),)


def network(arm: str) -> Spach:
    """The network of an arm, its first weights from torch's generator."""
    name, _, control = arm.partition("-") if arm not in _WIDTHS else (arm, "", "")
    stages = _hybrid(_HYBRIDS[name]) if name in _HYBRIDS else _family(name)
    config = SpachConfig(
        *(_WIDTHS[name], stages, 2),
        **{"num_classes": CLASSES, "image_size": SIDE, "drop_path": 0.1},
    )
    made = Spach(replace(config, bypass=control != "no-bypass"))
    if control == "removed":
        for block in made.blocks():
            block.remove_spatial_()
    return made


class History(Hook):
    """Loss and accuracy by epoch, on the augmented images of training and on those of the test."""

    def __init__(self, run: Run, split: Split, steps: int) -> None:
        self.run, self.split, self.steps = run, split, steps
        self.epochs: list[dict[str, float]] = []
        self.sums, self.start = [0.0, 0.0, 0.0, 0.0], time.process_time()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Any]) -> Tensor:
        """Cross-entropy with label smoothing; the sums of an epoch are kept without it."""
        x, y = batch[:2]
        logits = model(x).float()
        with torch.no_grad():
            found = logits.argmax(1) == y
            new = (float(cross_entropy(logits, y)), float(found.double().mean()))
        self.sums = [self.sums[0] + new[0], self.sums[1] + new[1], self.sums[2] + 1, self.sums[3]]
        return cross_entropy(logits, y, label_smoothing=0.1)

    def before_step(self, loop: TrainLoop) -> None:
        """What stochastic depth drops depends on the step alone, as the batch does."""
        torch.manual_seed(loop.done * 1000 + self.run.seed)

    def after_step(self, loop: TrainLoop) -> None:
        """At the end of an epoch: a row of the history."""
        if (loop.done + 1) % (self.steps // self.run.epochs):
            return
        found = predictions(loop.model, self.split.x_test)
        loop.model.train()
        count, seconds = self.sums[2], self.sums[3] + time.process_time() - self.start
        row = {
            "train_loss": round(self.sums[0] / count, 4),
            "train_top1": round(100 * self.sums[1] / count, 2),
            "top1": round(accuracy(found, self.split.y_test), 2),
        }
        self.epochs.append(row)
        print(f"{self.run.name} {len(self.epochs)} {row} {seconds:.0f} s", flush=True)
        self.sums, self.start = [0.0, 0.0, 0.0, seconds], time.process_time()

    def parts(self) -> Mapping[str, Stateful]:
        """Its own state."""
        return {"history": self}

    def state_dict(self) -> dict[str, Any]:
        """Epochs, and sums of the one that is running."""
        spent = self.sums[3] + time.process_time() - self.start
        return {"epochs": self.epochs, "sums": [*self.sums[:3], spent]}

    def load_state_dict(self, state: Any) -> None:
        """The inverse."""
        self.epochs, self.sums = list(state["epochs"]), list(state["sums"])


def train(run: Run, folder: Path, split: Split) -> dict[str, Any]:
    """The row of a run, trained to its end."""
    torch.manual_seed(run.seed)
    model = network(run.arm)
    if run.arm.endswith("shuffled"):
        order = torch.randperm(len(split.y_train), generator=torch.Generator().manual_seed(1))
        split = replace(split, y_train=split.y_train[order])
    costs = costs_by_part(model).values()
    course = run.course
    steps = course.steps(len(split.y_train))
    optimizer = optimizer_for(model, course)
    history = History(run, split, steps)
    loop = TrainLoop(
        *(model, optimizer, one_cycle(optimizer, course.rate, steps, course.warmup), steps),
        clip=course.clip,
        checkpoint=Checkpoint(folder / f"{run.name}.checkpoint", {"run": run.name}),
        hooks=[history],
    )
    views = Augmentation(split.x_train, reach=4, flip=True)
    loop.run(Batches(views, split.y_train, course, None, loop.ranks), history.loss)
    torch.save(model.state_dict(), folder / f"{run.name}.pt")
    return {
        **vars(run),
        "parameters": sum(cost.parameters for cost in costs),
        "macs": sum(cost.macs for cost in costs),
        "top1": history.epochs[-1]["top1"],
        "history": history.epochs,
        "cpu_s": round(history.sums[3]),
        "commit": commit(),
    }


def study(options: argparse.Namespace) -> None:
    """Train every run that has no row in the folder yet."""
    options.folder.mkdir(exist_ok=True, parents=True)
    split = load_tiny_imagenet(SIDE)
    for seed, arm in itertools.product(options.seeds, options.arms):
        run = Run(arm, seed, options.epochs)
        file = options.folder / f"{run.name}.json"
        if not file.exists():
            row = train(run, options.folder, split)
            replace_file(file, lambda target, row=row: target.write_text(json.dumps(row)))


def main() -> int:
    """Run the command."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("command", choices=("study", "report"))
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "study":
        study(options)
    else:
        report(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

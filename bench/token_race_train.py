# SPDX-License-Identifier: Apache-2.0
"""Trained weights for the race of token networks: DeiT-tiny and a hybrid at 64 px.

    python bench/token_race_train.py --folder FOLDER [--models hybrid deit_tiny] [--epochs 5]

hybrid: models.hybrid_ms("XXS"), patches of 4; deit_tiny: patches of 16 (--patch), positions that
`_deit.at_size` interpolates for other sizes. Tiny ImageNet (100 classes), channels-last, bfloat16
matrix products (--float32: none, faster where the processor has no instructions for them). Each run
keeps a checkpoint in the folder, goes on with the same bits from there where it was cut off, and
ends as NAME.pt (a state dict) and NAME.json (its row, with the history of its epochs).
--stop-after: of this call, so many steps; prints the CPU seconds of one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _cifar import load_tiny_imagenet
from _deit import DeiT
from _measure import command_line, commit
from spach import CLASSES, History, Run
from torch import Tensor, nn

from ternary_ops._atomic import replace_file
from ternary_ops.data.classification import Split
from ternary_ops.models import hybrid_ms
from ternary_ops.study.fit import Batches
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.loop import TrainLoop
from ternary_ops.train.rates import one_cycle

SIDE = 64
MODELS = ("hybrid", "deit_tiny")


@dataclass(frozen=True)
class RaceRun(Run):
    """One training: arm is the model."""

    patch: int = 16
    bfloat16: bool = True

    @property
    def course(self) -> TrainConfig:
        """Half the rate of the small networks of bench/spach.py."""
        base = self.epochs, 1e-3, 128, self.seed
        return TrainConfig(*base, weight_decay=0.05, clip=5.0, bfloat16=self.bfloat16)


def network(run: RaceRun) -> nn.Module:
    """The network of a run, its first weights from torch's generator."""
    if run.arm == "hybrid":
        options = {"num_classes": CLASSES, "image_size": SIDE, "drop_path": 0.1}
        return hybrid_ms("XXS", **options)
    return DeiT(CLASSES, SIDE, run.patch, drop_path=0.1)


class _Stopped(Exception):
    """The steps of this call are done."""


class _Clock:
    """Counts steps and their CPU seconds; raises _Stopped after so many steps of this call."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.count, self.start = limit, 0, time.process_time()
        self.resumed = False

    def first(self) -> None:
        """Steps that a checkpoint had done are counted no more."""
        if not self.resumed:
            self.count, self.start, self.resumed = 0, time.process_time(), True

    def __call__(self) -> None:
        """One step more."""
        self.count += 1
        if self.resumed and self.limit is not None and self.count == self.limit:
            raise _Stopped

    @property
    def seconds(self) -> float:
        """CPU seconds of a step."""
        return (time.process_time() - self.start) / max(1, self.count)


def train(run: RaceRun, folder: Path, split: Split, limit: int | None) -> dict[str, Any] | None:
    """The row of a run, trained to its end; None where `limit` stopped it."""
    torch.manual_seed(run.seed)
    model: nn.Module = network(run).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    course, clock = run.course, _Clock(limit)
    steps = course.steps(len(split.y_train))
    optimizer = optimizer_for(model, course)
    history = History(run, split, steps)
    about = {"run": run.name, "patch": run.patch, "bfloat16": run.bfloat16}
    loop = TrainLoop(
        *(model, optimizer, one_cycle(optimizer, course.rate, steps, course.warmup), steps),
        clip=course.clip,
        bfloat16=course.bfloat16,
        checkpoint=Checkpoint(folder / f"{run.name}.checkpoint", about),
        hooks=[history],
        on_step=clock,
    )
    batches = Batches(
        *(Augmentation(split.x_train, reach=8, flip=True), split.y_train, course),
        teacher=None,
        ranks=loop.ranks,
    )

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        clock.first()
        x, y, known = batches(step)
        return x.contiguous(memory_format=torch.channels_last), y, known

    try:
        loop.run(batch, history.loss)
    except _Stopped:
        print(
            f"{run.name}: {clock.seconds:.2f} CPU s a step, stopped after {clock.count}", flush=True
        )
        return None
    torch.save(model.state_dict(), folder / f"{run.name}.pt")
    return {
        **vars(run),
        "parameters": sum(p.numel() for p in model.parameters()),
        "top1": history.epochs[-1]["top1"],
        "history": history.epochs,
        "cpu_s": round(history.sums[3]),
        "cpu_s_step": round(clock.seconds, 3),
        "commit": commit(),
    }


def race(options: argparse.Namespace) -> None:
    """Train every model that has no row in the folder yet."""
    options.folder.mkdir(exist_ok=True, parents=True)
    split = load_tiny_imagenet(SIDE)
    for model in options.models:
        own = options.patch, not options.float32
        run = RaceRun(model, options.seed, options.epochs, *own)
        file = options.folder / f"{run.name}.json"
        if file.exists():
            continue
        row = train(run, options.folder, split, options.stop_after)
        if row is not None:
            replace_file(file, lambda target, row=row: target.write_text(json.dumps(row)))


def main() -> int:
    """Run the command."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patch", type=int, default=16, help="of DeiT-tiny")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--stop-after", type=int, help="steps of this call")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints and rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    race(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

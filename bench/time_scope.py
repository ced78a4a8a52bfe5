# SPDX-License-Identifier: Apache-2.0
"""Rules of scope "time" against equal zeros in every layer, at equal milliseconds and steps.

    python bench/time_scope.py --seeds 0,1,2 --steps 240

The dense ResNet-20 for CIFAR-10 of bench/results/parents becomes ternary, once an arm and a seed:

    layer      --zeros of the quads of every layer empty
    global     the lowest scores of all layers
    score      the lowest scores for each millisecond that a quad saves
    square     the lowest squares of scores likewise
    time       as the package ranks

Each arm's zeros are adjusted until its trained program takes as long as that of "layer", within
2 %: both are timed in turns with the codes that they have, and where they differ the arm is trained
anew. All arms of a seed see the same batches; accuracy is the program's on 10,000 test images. An
arm keeps a checkpoint under --folder, and a row of time_scope.csv that is not made again: a run
that was cut off goes on. At the end, differences to "layer" are printed with intervals over seeds.
TERNARY_OPS_ISA=avx2 measures, and ranks, for that instruction set.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _cifar import load_cifar10
from _measure import PARENTS, RESULTS, command_line, commit, machine, read_rows, write_csv
from safetensors.torch import load_file
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops.data.classification import Split
from ternary_ops.program.layer_costs import CostTable, calls_ms, measure
from ternary_ops.prune.targets import Target
from ternary_ops.prune.time_scope import TimeGroup
from ternary_ops.quantize.engine_costs import eight_bits
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.study.fit import accuracy, fit
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation

TABLE = "time_scope.csv"
CLOSE = 0.02  # of the time of "layer": an arm further away is trained anew
_TRIES = 3  # of training an arm
_HALVINGS = 12  # of the range of zeros
_TIMINGS = 5  # of two programs in turns
_BATCH, _RATE = 128, 0.05
_T = {2: 4.303, 3: 3.182, 4: 2.776}  # of Student's distribution, 95 %, by degrees of freedom


class Ruled(TimeGroup):
    """Ranks by a rule of this file."""

    def __init__(self, rule: Callable[[Tensor, Target], Tensor], *given: Any) -> None:
        self.rule = rule
        super().__init__(*given)

    def ranked(self, parts: list[Tensor]) -> list[Tensor]:
        """By what the rule makes of scores, for each millisecond."""
        return [
            self.rule(part, t) * t.units / t.cost.ms  # type: ignore[union-attr]
            for part, t in zip(parts, self.targets, strict=True)
        ]


RULES: dict[str, Callable[[Tensor, Target], Tensor]] = {
    "square": lambda scores, target: scores.square(),
    "relative": lambda s, target: (s / s.mean()).square() / target.units**0.75,
}
for _name, _rule in RULES.items():
    tops.prune.register_allocation(
        _name, lambda targets, zeros, rule=_rule: [Ruled(rule, targets, zeros)]
    )
ARMS = ("layer", "time", "global", *RULES)


def parent() -> nn.Module:
    """The dense network."""
    model = models.cifar_resnet(20)
    model.load_state_dict(load_file(PARENTS / "resnet20.safetensors"))
    return model.eval().to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Study:
    """What all arms have in common."""

    costs: Plan
    table: CostTable
    split: Split
    options: Any

    def quantized(self, arm: str, zeros: float) -> nn.Module:
        """The network of an arm as training begins; costs are measured once for all."""
        config = tops.TernaryConfig(zeros=zeros, scope=arm)
        rows = (replace(row, config=config) if row.pattern else row for row in self.costs)
        model = parent()
        tops.quantize_(model, Plan(tuple(rows)))
        return model

    def predicted(self, arm: str, zeros: float) -> float:
        """Milliseconds of the parent pruned at once, by the table."""
        pruner = tops.prune.Pruner(self.quantized(arm, zeros), "one_shot", total_steps=1)
        pruner.step()
        return self.table.total({row.name: ("ternary", row.measured) for row in pruner.summary()})

    def zeros_for(self, arm: str, ms: float) -> float:
        """Zeros with which an arm takes so many milliseconds by the table."""
        low, high = 0.05, 0.965
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            slower = self.predicted(arm, middle) > ms
            low, high = (middle, high) if slower else (low, middle)
        return round(high, 4)

    def first_zeros(self, arm: str) -> float:
        """Zeros to begin an arm with: those that it had last, or by the table."""
        known = self.options.folder / f"{self.table.isa}-{arm}-zeros.json"
        if arm == "layer":
            return float(self.options.zeros)
        if known.exists():
            return float(json.loads(known.read_text()))
        return self.zeros_for(arm, self.predicted("layer", self.options.zeros))

    def train(self, arm: str, zeros: float, seed: int) -> runtime.Program:
        """Fine-tune an arm, and compile it."""
        model, split, steps = self.quantized(arm, zeros), self.split, self.options.steps
        count = min(steps * _BATCH, len(split.y_train))
        course = TrainConfig(
            *(math.ceil(steps * _BATCH / count), _RATE, _BATCH, seed),
            optimizer="sgd",
        )
        views = Augmentation(split.x_train[:count], reach=4, flip=True, count=12)
        optimizer = optimizer_for(model, course)
        about = {"arm": arm, "seed": seed, "zeros": zeros, "steps": course.steps(count)}
        file = self.options.folder / f"{self.table.isa}-{arm}-{seed}-{zeros}.checkpoint"
        pruner = tops.prune.Pruner(model, total_steps=course.steps(count), optimizer=optimizer)
        fit(
            *(model, views, split.y_train[:count], course, optimizer),
            Distillation(label_smoothing=0.05),
            pruner=pruner,
            calibration=split.x_train[::50],
            checkpoint=Checkpoint(file, about),
        )
        program = tops.compile(model, split.x_test[:1])
        if not isinstance(program, runtime.Program):
            raise TypeError("it has islands")
        return program

    def at_equal_time(self, arm: str, zeros: float, seed: int) -> dict[str, Any]:
        """The row of an arm, trained until its time is that of the seed's "layer"."""
        base = self.options.folder / f"{self.table.isa}-layer-{seed}.safetensors"
        known = self.options.folder / f"{self.table.isa}-{arm}-zeros.json"
        for _ in range(_TRIES):
            known.write_text(json.dumps(zeros))  # a run that was cut off goes on with these
            program = self.train(arm, zeros, seed)
            if arm == "layer":
                program.save(base)
            own, other = beside(program, runtime.load(base), self.split.x_test[:1])
            print(f"{arm}, zeros {zeros}: {own:.4f} ms, layer {other:.4f}", flush=True)
            if abs(own / other - 1) <= CLOSE:
                break
            zeros = self.zeros_for(arm, self.predicted(arm, zeros) * other / own)
        logits = torch.from_numpy(program(self.split.x_test[:].contiguous().numpy()))
        return {
            **{"scope": arm, "seed": seed, "steps": self.options.steps, "zeros": zeros},
            **{"ms": round(own, 4), "of_layer": round(own / other, 3)},
            "top1": round(accuracy(logits.argmax(1), self.split.y_test), 2),
            **{"isa": self.table.isa, "commit": commit(), **machine()},
        }


def beside(program: runtime.Program, other: runtime.Program, x: Tensor) -> tuple[float, float]:
    """Milliseconds of two programs, of one thread, in turns."""
    array = x.contiguous().numpy()
    with runtime.num_threads(1):
        runs = [partial(program, array), partial(other, array)]
        times = [calls_ms(runs) for _ in range(_TIMINGS)]
    own, others = (min(column) for column in zip(*times, strict=True))
    return own, others


def shuffled(split: Split) -> Split:
    """The training images in another order: the pack has them class by class."""
    order = torch.randperm(len(split.y_train), generator=torch.Generator().manual_seed(0))
    return Split(split.x_train[order], split.y_train[order], split.x_test, split.y_test)


def prepared(options: Any) -> Study:
    """Costs: those with which the first arm of the folder began."""
    split = shuffled(load_cifar10())
    x = split.x_test[:1]
    with runtime.num_threads(1):
        costs = tops.plan(parent(), tops.TernaryConfig(zeros=0.9, scope="time"), example=x)
        names = [row.name for row in costs if row.cost is not None]
        table = measure(eight_bits(parent(), x, costs), names)  # type: ignore[arg-type]
    file = options.folder / f"costs-{table.isa}.json"
    if not file.exists():
        file.write_text(json.dumps(costs.to_dict()))
    return Study(Plan.from_dict(json.loads(file.read_text())), table, split, options)


def report(rows: list[dict[str, str]]) -> None:
    """Mean differences to "layer" in points, with paired intervals of 95 %."""
    top1 = {(r["isa"], r["scope"], r["seed"]): float(r["top1"]) for r in rows}
    for isa in sorted({r["isa"] for r in rows}):
        for arm in ARMS[1:]:
            own = [
                value - top1[isa, "layer", seed]
                for (its, scope, seed), value in top1.items()
                if (its, scope) == (isa, arm) and (isa, "layer", seed) in top1
            ]
            if len(own) > 1:
                half = _T.get(len(own) - 1, 12.706) * statistics.stdev(own) / math.sqrt(len(own))
                mean = statistics.mean(own)
                print(f"{isa} {arm:8} {mean:+.2f} points, {mean - half:+.2f} to {mean + half:+.2f}")


def main() -> int:
    """Every arm of every seed that has no row yet."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--steps", type=int, default=240, help="of an arm")
    parser.add_argument("--zeros", type=float, default=0.8, help="of scope layer (default 0.8)")
    parser.add_argument("--folder", type=Path, default=Path("bench/runs"))
    parser.add_argument("--out", default=TABLE, help="file name under bench/results")
    parser.add_argument("--arms", default=",".join(ARMS), help='comma-separated, "layer" first')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(exist_ok=True, parents=True)
    study = prepared(options)
    for seed in map(int, options.seeds.split(",")):
        for arm in options.arms.split(","):
            rows = read_rows(RESULTS / options.out)
            key = (study.table.isa, arm, str(seed))
            if any((r["isa"], r["scope"], r["seed"]) == key for r in rows):
                continue
            row = study.at_equal_time(arm, study.first_zeros(arm), seed)
            print(row, flush=True)
            write_csv(options.out, [*rows, row])
    report(read_rows(RESULTS / options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())

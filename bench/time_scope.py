# SPDX-License-Identifier: Apache-2.0
"""Zeros by time against equal zeros in every layer, at equal milliseconds, steps and seeds.

    python bench/time_scope.py --seeds 0,1,2 --epochs 2

The dense ResNet-20 for CIFAR-10 of bench/results/parents becomes ternary, with --zeros of the quads
of every layer empty (scope "layer"), or with as many over all layers, ranked by score per measured
millisecond (scope "time"), as take the same time by the cost table of this machine. Both arms of a
seed see the same batches. ms: of the trained program by that table, from its own zeros; accuracy is
the program's on 10,000 test images. Each arm keeps a checkpoint under --folder, and a row of
time_scope.csv that is not made again: an interrupted run goes on. --steps cuts arms short, to try.
TERNARY_OPS_ISA=avx2 measures, and ranks, for that instruction set.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _cifar import load_cifar10
from _measure import PARENTS, RESULTS, command_line, commit, machine, read_rows, write_csv
from safetensors.torch import load_file
from torch import nn

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops.data.classification import Split
from ternary_ops.program.layer_costs import CostTable, measure
from ternary_ops.quantize.engine_costs import eight_bits
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.study.fit import accuracy, fit
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation

TABLE = "time_scope.csv"
_STEPS = 14  # of the search for equal time
_RATE = 0.05


def parent() -> nn.Module:
    """The dense network."""
    model = models.cifar_resnet(20)
    model.load_state_dict(load_file(PARENTS / "resnet20.safetensors"))
    return model.eval().to(memory_format=torch.channels_last)


def shares(program: runtime.Program, table: CostTable) -> dict[str, tuple[str, float]]:
    """Kind of weights and share of empty quads of each pruned layer, as the cost table asks."""
    weights = program.graph.weights
    return {w.name: (w.kind, 1 - w.density) for w in weights if w.name in table.layers}


def quantized(scope: str, zeros: float, costs: Plan) -> nn.Module:
    """The network of an arm as training begins; costs are measured once for all."""
    config = tops.TernaryConfig(zeros=zeros, scope=scope)
    rows = (replace(row, config=config) if row.pattern else row for row in costs)
    model = parent()
    tops.quantize_(model, Plan(tuple(rows)))
    return model


def predicted(scope: str, zeros: float, costs: Plan, table: CostTable) -> float:
    """Milliseconds of the parent pruned at once."""
    model = quantized(scope, zeros, costs)
    pruner = tops.prune.Pruner(model, "one_shot", total_steps=1)
    pruner.step()
    return table.total({row.name: ("ternary", row.measured) for row in pruner.summary()})


def equal_time(ms: float, costs: Plan, table: CostTable) -> float:
    """Zeros with which scope "time" takes so many milliseconds."""
    low, high = 0.05, 0.965
    for _ in range(_STEPS):
        middle = (low + high) / 2
        slower = predicted("time", middle, costs, table) > ms
        low, high = (middle, high) if slower else (low, middle)
    return round(high, 4)


def settled(options: Any, costs: Plan, table: CostTable) -> tuple[Plan, dict[str, float]]:
    """Costs and zeros of both arms: those with which the first arm of the folder began."""
    file = options.folder / f"time-scope-{table.isa}.json"
    if not file.exists():
        ms = predicted("layer", options.zeros, costs, table)
        zeros = {"layer": options.zeros, "time": equal_time(ms, costs, table)}
        file.write_text(json.dumps({"costs": costs.to_dict(), "zeros": zeros, "ms": ms}))
    kept = json.loads(file.read_text())
    print(f"{kept['ms']:.4f} ms, zeros {kept['zeros']}", flush=True)
    return Plan.from_dict(kept["costs"]), kept["zeros"]


def train(name: str, model: nn.Module, seed: int, options: Any, split: Split) -> None:
    """Fine-tune an arm in place."""
    views = Augmentation(split.x_train, reach=4, flip=True, count=12)
    epochs = options.epochs
    course = TrainConfig(epochs, _RATE, 128, optimizer="sgd", weight_decay=1e-4, seed=seed)
    labels = split.y_train
    if options.steps:
        labels = labels[: options.steps * 128 // epochs]
        views = Augmentation(split.x_train[: len(labels)], reach=4, flip=True, count=12)
    optimizer = optimizer_for(model, course)
    steps = course.steps(len(labels))
    pruner = tops.prune.Pruner(model, total_steps=steps, optimizer=optimizer)
    fit(
        *(model, views, labels, course, optimizer),
        Distillation(label_smoothing=0.05),
        pruner=pruner,
        calibration=split.x_train[::50],
        checkpoint=Checkpoint(options.folder / f"{name}.checkpoint", {"arm": name, "steps": steps}),
    )


def shuffled(split: Split) -> Split:
    """The training images in another order: the pack has them class by class."""
    order = torch.randperm(len(split.y_train), generator=torch.Generator().manual_seed(0))
    return Split(split.x_train[order], split.y_train[order], split.x_test, split.y_test)


def main() -> int:
    """Every arm of every seed that has no row yet."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="of an arm, in place of epochs")
    parser.add_argument("--zeros", type=float, default=0.8, help="of scope layer (default 0.8)")
    parser.add_argument("--folder", type=Path, default=Path("bench/runs"))
    parser.add_argument("--out", default=TABLE, help="file name under bench/results")
    parser.add_argument("--arms", default="layer,time", help="comma-separated")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(exist_ok=True, parents=True)
    split = shuffled(load_cifar10())
    x = split.x_test[:1]
    with runtime.num_threads(1):
        costs = tops.plan(parent(), tops.TernaryConfig(zeros=0.9, scope="time"), example=x)
        names = [row.name for row in costs if row.cost is not None]
        table = measure(eight_bits(parent(), x, costs), names)
    costs, zeros = settled(options, costs, table)
    for seed in map(int, options.seeds.split(",")):
        for scope in options.arms.split(","):
            rows = read_rows(RESULTS / options.out)
            key = {"isa": table.isa, "scope": scope, "seed": str(seed)}
            if any(key.items() <= row.items() for row in rows):
                continue
            model = quantized(scope, zeros[scope], costs)
            train(f"time-scope-{table.isa}-{scope}-{seed}", model, seed, options, split)
            program = tops.compile(model, x)
            logits = program(split.x_test[:].contiguous().numpy())
            row = {
                **{"scope": scope, "seed": seed, "epochs": options.epochs, "steps": options.steps},
                **{"zeros": zeros[scope], "ms": round(table.total(shares(program, table)), 4)},
                "top1": round(accuracy(torch.from_numpy(logits).argmax(1), split.y_test), 2),
                **{"isa": table.isa, "commit": commit(), **machine()},
            }
            print(row, flush=True)
            write_csv(options.out, [*rows, row])
    return 0


if __name__ == "__main__":
    sys.exit(main())

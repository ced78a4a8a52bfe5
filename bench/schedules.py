# SPDX-License-Identifier: Apache-2.0
"""How zeros should grow: schedules under one fixed budget of steps, several seeds, paired test.

    python bench/schedules.py run fashion --seeds 10
    python bench/schedules.py run resnet20 --seeds 5
    python bench/schedules.py report

fashion: a small network on Fashion-MNIST, from scratch, as in "One-Cycle Pruning" (Hubens et al.):
float weights, every layer its own share ("layer"), magnitude, zeros complete at the last step.
resnet20: the dense CIFAR-10 network of bench/accuracy.py, pruned on. All schedules get the same
steps, learning rates and order of images; a seed changes initialization and order. A row that
bench/results/schedules.csv holds already is not run again. `report` prints mean, deviation and the
p-value of a paired t-test against one_cycle, and draws bench/results/schedules.svg.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from _measure import RESULTS, command_line, read_rows, write_csv
from torch import nn

from ternary_ops.data.classification import Split
from ternary_ops.prune import Pruner
from ternary_ops.quantize import Distillation
from ternary_ops.study.fit import accuracy, fit, predictions
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.config import TrainConfig, optimizer_for

TABLE = "schedules.csv"
SCHEDULES = ("one_cycle", "one_shot", "iterative", "agp")
KEY = ("network", "pattern", "schedule", "zeros", "epochs", "seed")
# Network -> patterns with shares of zeros, epochs, learning rate, optimizer.
GRIDS: dict[str, dict[str, Any]] = {
    "fashion": {
        "targets": (("element", 0.8), ("element", 0.9), ("element", 0.95), ("1x4", 0.95)),
        "epochs": (1, 3),
        "course": {"rate": 2e-3, "batch": 128},
    },
    "resnet20": {
        "targets": (("1x4", 0.8), ("1x4", 0.9), ("1x4", 0.95)),
        "epochs": (1,),
        "course": {"rate": 0.05, "batch": 128, "optimizer": "sgd", "bfloat16": True},
    },
}


def load(network: str, options: argparse.Namespace) -> Split:
    if network == "fashion":
        from _fashion import load_fashion

        return load_fashion(options.fashion)
    from _cifar import load_cifar10

    return load_cifar10()


def start(network: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if network == "fashion":
        from _fashion import small_net

        return small_net()
    from accuracy import trained

    return trained(network)


def train(case: dict[str, Any], split: Split) -> dict[str, Any]:
    """One row."""
    model = start(case["network"], case["seed"])
    given = GRIDS[case["network"]]["course"]
    course = TrainConfig(case["epochs"], seed=case["seed"], **given)
    optimizer = optimizer_for(model, course)
    pruner = Pruner(
        *(model, case["schedule"], course.steps(len(split.y_train)), case["zeros"]),
        pattern=case["pattern"],
        scope="layer" if case["network"] == "fashion" else "global",
        optimizer=optimizer,
        freeze_at=1.0,
        skip=["0"] if case["network"] == "fashion" else ["conv1", "fc"],
    )
    color = case["network"] != "fashion"
    views = Augmentation(split.x_train, reach=4 if color else 1, flip=color)
    begin = time.process_time()
    fit(
        *(model, views, split.y_train, course, optimizer, Distillation()),
        pruner=pruner,
    )
    score = accuracy(predictions(model, split.x_test), split.y_test)
    seconds = round(time.process_time() - begin)
    return case | {"measured": round(pruner.zeros, 6), "top1": round(score, 2), "cpu_s": seconds}


def cases(network: str, seeds: int) -> list[dict[str, Any]]:
    grid = GRIDS[network]
    axes = (range(seeds), grid["epochs"], grid["targets"], SCHEDULES)
    return [
        dict(zip(KEY, (network, pattern, schedule, zeros, epochs, seed), strict=True))
        for seed, epochs, (pattern, zeros), schedule in itertools.product(*axes)
    ]


def key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def run(network: str, options: argparse.Namespace) -> None:
    """Every case that is not in the table yet."""
    rows = read_rows(RESULTS / TABLE)
    done = {key(row) for row in rows}
    todo = [case for case in cases(network, options.seeds) if key(case) not in done]
    print(len(todo), "runs")
    split = load(network, options) if todo else None
    for case in todo:
        rows.append(train(case, split))
        write_csv(TABLE, rows)
        print(rows[-1], flush=True)


def report() -> None:
    """Mean, deviation, and a paired test against one_cycle; a chart."""
    from scipy.stats import ttest_rel

    groups: dict[tuple[str, ...], dict[str, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in read_rows(RESULTS / TABLE):
        group = tuple(row[name] for name in ("network", "pattern", "zeros", "epochs"))
        groups[group][row["schedule"]][row["seed"]] = float(row["top1"])
    print(f"{'network, pattern, zeros, epochs':36} {'schedule':10} seeds   top-1         p")
    for group, schedules in groups.items():
        ours = schedules["one_cycle"]
        for name, scores in schedules.items():
            seeds = sorted(set(scores) & set(ours))
            p = ""
            if name != "one_cycle" and len(seeds) > 2:
                test = ttest_rel([ours[s] for s in seeds], [scores[s] for s in seeds])
                p = f"{test.pvalue:.3f}"
            deviation = stdev(scores.values()) if len(scores) > 1 else 0.0
            print(
                f"{', '.join(group):36} {name:10} {len(scores):5}   "
                f"{mean(scores.values()):.2f} +- {deviation:.2f} {p}"
            )
    draw(groups)


def draw(groups: dict[tuple[str, ...], dict[str, dict[str, float]]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    panels = sorted({(g[0], g[1], g[3]) for g in groups})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.2 * len(panels), 3.2), squeeze=False, layout="constrained"
    )
    for axis, (network, pattern, epochs) in zip(axes[0], panels, strict=True):
        shown = [g for g in groups if (g[0], g[1], g[3]) == (network, pattern, epochs)]
        shown.sort(key=lambda g: float(g[2]))
        for number, name in enumerate(SCHEDULES):
            # Side by side: deviations would hide each other.
            points = [
                (place + (number - 1.5) * 0.08, list(groups[g][name].values()))
                for place, g in enumerate(shown)
                if groups[g][name]
            ]
            x = [place for place, _ in points]
            y = [mean(scores) for _, scores in points]
            error = [stdev(scores) if len(scores) > 1 else 0.0 for _, scores in points]
            axis.errorbar(x, y, error, marker="o", capsize=3, label=name)
        axis.set_xticks(range(len(shown)), [f"{100 * float(g[2]):g}" for g in shown])
        axis.set_xlim(-0.5, len(shown) - 0.5)
        title = f"{network}, {pattern}, {epochs} epochs"
        axis.set(title=title, xlabel="zeros, %", ylabel="top-1, %")
    axes[0][0].legend()
    figure.savefig(RESULTS / "schedules.svg")


def main() -> int:
    parser = command_line(__doc__, threads=1)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("network", nargs="?", choices=tuple(GRIDS), default="fashion")
    parser.add_argument("--seeds", type=int, default=5)
    from _fashion import INSTALLED

    parser.add_argument("--fashion", type=Path, default=INSTALLED)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "run":
        run(options.network, options)
    else:
        report()
    return 0


if __name__ == "__main__":
    sys.exit(main())

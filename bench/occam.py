# SPDX-License-Identifier: Apache-2.0
"""Occam's hill: does a pruned network generalize better than its dense twin where labels are noisy?

    python bench/occam.py run --seeds 3
    python bench/occam.py report

1,000 images of MNIST, 30 % or none of their labels replaced by another class at random, and a
perceptron of 118,016 weights, which can learn all of them by heart. Every share of zeros gets the
same steps and the same images in the same order: magnitude, single weights, "agp" to the half of
the steps. Test accuracy is on the 10,000 true labels of the test set; `by_heart` is the share of
wrong labels that the network repeats. A row that bench/results/occam.csv holds already is not run
again. `report` prints means, a paired t-test against dense, and draws bench/results/occam.svg. The
hill of Hoefler et al. 2021 is reproduced if some share of zeros in 20..80 % is at least as good as
dense in the mean of the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from _cifar import folder
from _measure import RESULTS, command_line, commit, read_rows, write_csv
from torch import Tensor, nn

from ternary_ops.prune import Pruner

TABLE = "occam.csv"
ZEROS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99)
NOISE = (0.3, 0.0)
IMAGES, EPOCHS, BATCH = 1000, 60, 100
KEY = ("noise", "zeros", "seed")


def load(part: str) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 784], mean 0 and deviation 1, and labels int64 [N]."""
    with np.load(folder() / "mnist" / f"{part}.npz") as file:
        x, y = torch.from_numpy(file["image"]), torch.from_numpy(file["label"])
    return (x.flatten(1).float() / 255 - 0.1307) / 0.3081, y.long()


def network() -> nn.Module:
    """784-128-128-10."""
    return nn.Sequential(
        *(nn.Linear(784, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, 10),
    )


def noisy(y: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Labels of which a share, to one, is another class."""
    wrong = torch.randperm(len(y), generator=random)[: round(share * len(y))]
    made = y.clone()
    made[wrong] = (y[wrong] + torch.randint(1, 10, (len(wrong),), generator=random)) % 10
    return made


def train(case: dict[str, Any], data: tuple[Tensor, ...]) -> dict[str, Any]:
    """One row."""
    x_all, y_all, x_test, y_test = data
    random = torch.Generator().manual_seed(case["seed"])
    chosen = torch.randperm(len(y_all), generator=random)[:IMAGES]
    x, true = x_all[chosen], y_all[chosen]
    y = noisy(true, case["noise"], random)
    torch.manual_seed(case["seed"])
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    steps = EPOCHS * IMAGES // BATCH
    pruner = None
    if case["zeros"]:
        pruner = Pruner(model, "agp", steps, case["zeros"], end=0.5, optimizer=optimizer)
    begin = time.process_time()
    for step in range(steps):
        if step % (IMAGES // BATCH) == 0:
            order = torch.randperm(IMAGES, generator=random).view(-1, BATCH)
        part = order[step % len(order)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
    with torch.no_grad():
        said, correct = model(x).argmax(1), int((model(x_test).argmax(1) == y_test).sum())
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    wrong = y != true
    return case | {
        "weights": sum(w.numel() for w in weights),
        "nonzero": sum(int((w != 0).sum()) for w in weights),
        "correct": correct,
        "test_top1": round(100 * correct / len(y_test), 2),
        "train_top1": round(100 * float((said == y).double().mean()), 2),
        "by_heart": round(100 * float((said == y)[wrong].double().mean()), 2)
        if wrong.any()
        else "",
        "cpu_s": round(time.process_time() - begin, 1),
        "commit": commit(),
        "torch": torch.__version__,
    }


def run(seeds: int) -> None:
    """Every case that is not in the table yet."""
    torch.set_num_threads(1)
    rows = read_rows(RESULTS / TABLE)
    done = {tuple(row[name] for name in KEY) for row in rows}
    data = (*load("train"), *load("test"))
    for noise, seed, zeros in itertools.product(NOISE, range(seeds), ZEROS):
        case = dict(zip(KEY, (noise, zeros, seed), strict=True))
        if tuple(map(str, case.values())) not in done:
            rows.append(train(case, data))
            write_csv(TABLE, rows)
            print({**rows[-1]}, flush=True)


def report() -> int:
    """Means beside dense; 0 where the hill is there with noisy labels."""
    from scipy.stats import ttest_rel

    rows = read_rows(RESULTS / TABLE)
    curves: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda r: (float(r["noise"]), float(r["zeros"]), int(r["seed"]))):
        curves.setdefault(row["noise"], {}).setdefault(float(row["zeros"]), []).append(row)
    found = False
    print(
        f"{'noise':>5} {'zeros':>6} {'nonzero':>8} {'test':>13} {'train':>6} {'by heart':>8}     p"
    )
    for noise, curve in curves.items():
        dense = [float(row["test_top1"]) for row in curve[0.0]]
        for zeros, own in curve.items():
            test = [float(row["test_top1"]) for row in own]
            p = ttest_rel(test, dense).pvalue if zeros else 1.0
            heart = [float(row["by_heart"]) for row in own if row["by_heart"]]
            print(
                f"{noise:>5} {zeros:>6.0%} {int(own[0]['nonzero']):>8,} "
                f"{mean(test):>6.2f} ± {stdev(test):4.2f} "
                f"{mean(float(row['train_top1']) for row in own):>6.1f} "
                f"{mean(heart) if heart else 0:>8.1f} {p:>6.3f}"
            )
            found |= noise != "0.0" and 0.2 <= zeros <= 0.8 and mean(test) >= mean(dense)
    plot(curves)
    print("the hill is", "there" if found else "not seen")
    return 0 if found else 1


def plot(curves: dict[str, dict[float, list[dict[str, Any]]]]) -> None:
    """Test accuracy against the share of zeros; dense as a level."""
    from ternary_ops.charts import new_figure, save_figure

    figure, axes = new_figure(len(curves))
    for ax, (noise, curve) in zip(axes, curves.items(), strict=True):
        for key, color in (("test_top1", "#2a6f97"), ("train_top1", "#bc6c25")):
            values = [[float(row[key]) for row in own] for own in curve.values()]
            bars = [stdev(v) for v in values]
            ax.errorbar([100 * z for z in curve], [mean(v) for v in values], bars, color=color)
        ax.set_title(f"{float(noise):.0%} wrong labels: test, train", fontsize=9)
        ax.set_xlabel("% zeros")
    axes[0].set_ylabel("top-1, %")
    save_figure(figure, RESULTS / "occam.svg")


def main() -> int:
    """Run or report."""
    parser: argparse.ArgumentParser = command_line(__doc__)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "run":
        run(options.seeds)
        return 0
    return report()


if __name__ == "__main__":
    sys.exit(main())

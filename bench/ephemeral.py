# SPDX-License-Identifier: Apache-2.0
"""Zeros in activations: how many there are, what they cost in accuracy, what the engine would gain.

    python bench/ephemeral.py --csv ephemeral.csv

The demo's network on the digits, 5 epochs in float32, with ReLU and with k-winners-take-all of
three shares of zeros in place of it. `zeros`, `packets`, `vectors`: shares in what layers but the
first read, weighted by their multiply-adds (nn.input_zeros): of single numbers, of four channels of
a pixel, and of these at eight pixels at once, which is what one instruction reads. `ideal`: how
many times as fast a network would be in which each such vector were skipped at no cost.
`of_dense_ms`: measured, the time of an 8-bit 64 x 64 x 3 x 3 convolution on 16 x 16 pixels with
that share of zeros in its input over that without, in turns, processor time of one thread.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from statistics import mean
from typing import Any

import torch
from _measure import CLOCKS, commit, conclude, interleave, ratio, setup, stopwatch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.data.classification import Split, digits
from ternary_ops.graph.replace import replace_modules
from ternary_ops.nn import KWinners, input_zeros
from ternary_ops.program.program import Program
from ternary_ops.study.fit import accuracy, fit, predictions
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation

EPOCHS = 5
RELU = "relu"
ACTIVATIONS = (RELU, 0.5, 0.75, 0.9)


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this bench."""
    parser.add_argument("--seeds", type=int, default=1)


def network(activation: str | float) -> nn.Module:
    """The demo's network, its ReLUs replaced."""
    model = tops.models.digits_resnet()
    if activation != RELU:
        relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
        made: dict[nn.Module, nn.Module] = {m: KWinners(zeros=float(activation)) for m in relus}
        replace_modules(model, made)
        if not relus:
            raise SystemExit("the network has no nn.ReLU to replace")
    return model


def macs(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Multiply-adds of each layer that runs."""
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Module, given: Any, made: Tensor) -> None:
        weight = layer.weight
        if isinstance(weight, Tensor):
            found[name] = found.get(name, 0) + made.numel() * weight[0].numel()

    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    hooks = [m.register_forward_hook(partial(count, name)) for name, m in layers.items()]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return found


def trained(activation: str | float, seed: int, split: Split) -> dict[str, float]:
    """Top-1, and zeros of what layers but the first read."""
    torch.manual_seed(seed)
    model = network(activation)
    config = TrainConfig(EPOCHS, 3e-3, seed=seed)
    optimizer = optimizer_for(model, config)
    fit(model, Augmentation(split.x_train), split.y_train, config, optimizer, Distillation())
    score = accuracy(predictions(model, split.x_test), split.y_test)
    work = macs(model, split.x_test[:1])
    rows = input_zeros(model, [split.x_test[:500]])[1:]
    total = sum(work[row.name] for row in rows)
    shares = {
        key: sum(work[row.name] * getattr(row, key) for row in rows) / total
        for key in ("zeros", "packets", "vectors")
    }
    return {"top1": score, **shares}


def convolution() -> Program:
    """One 8-bit layer that reads 8-bit codes."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    config = tops.TernaryConfig("int8")
    tops.quantize_(layer, tops.plan(layer, config, rules={"0": config}))
    x = torch.rand(1, 64, 16, 16)
    tops.calibrate(layer, [x])
    made = tops.compile(layer, x)
    if not isinstance(made, Program):
        raise TypeError("it has islands")
    return made


def engine_ratios(shares: list[float], rounds: int) -> list[float]:
    """Time with that share of zeros in the input over that without."""
    program, timers = convolution(), {}
    for share in (0.0, *shares):
        x = torch.rand(1, 64, 16, 16, generator=torch.Generator().manual_seed(1)) + 0.01
        gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < share
        timers[str(share)] = stopwatch(
            partial(program, x.masked_fill(gone, 0.0).numpy()), CLOCKS["cpu"]
        )
    times = interleave(timers, rounds)
    return [ratio(times[str(share)], times["0.0"]) for share in shares]


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=21, more=more)
    split, rows = digits(), []
    for activation in ACTIVATIONS:
        runs = [trained(activation, seed, split) for seed in range(options.seeds)]
        means = {key: mean(run[key] for run in runs) for key in runs[0]}
        tops1 = [run["top1"] for run in runs]
        rows.append(
            {
                **{"activation": activation, "seeds": options.seeds, "epochs": EPOCHS},
                **{"top1": round(means["top1"], 2), "least": min(tops1), "most": max(tops1)},
                **{key: round(means[key], 4) for key in ("zeros", "packets", "vectors")},
                "ideal": round(1 / (1 - means["vectors"]), 3),
            }
        )
        print(rows[-1], flush=True)
    shares = [float(row["zeros"]) for row in rows]
    for row, found in zip(rows, engine_ratios(shares, options.rounds), strict=True):
        row["of_dense_ms"] = round(found, 3)
        print(f"{row['activation']}: zeros {row['zeros']:.0%}, engine {found:.2f} of the time")
    about = {**about, "commit": commit()}
    return conclude([{**row, **about} for row in rows], options.csv)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The runs of bench/accuracy.py: what is trained from what, how long, to how many zeros."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ternary_ops as tops
from ternary_ops.study.fit import Course


@dataclass(frozen=True)
class Run:
    """One training.

    network: "resnet20", "resnet56" or "resnet18", for 32x32 images. start: "" from scratch,
    "original" from the weights of the data pack, else the run whose network is compressed.
    teacher: the run whose logits teach. config: None for a dense float network. rules and pruner:
    further arguments of tops.plan and Pruner.
    """

    name: str
    network: str
    start: str
    course: Course
    width: int = 16
    teacher: str = ""
    config: tops.TernaryConfig | None = None
    rules: dict[str, tops.TernaryConfig] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)


def _sgd(epochs: int, rate: float, decay: float, **options: Any) -> Course:
    return Course(epochs, rate, 128, optimizer="sgd", weight_decay=decay, **options)


def _ternary(name: str, zeros: float, pattern: str, epochs: int, **options: Any) -> Run:
    """A compressed ResNet-20 or -56, taught by the dense ResNet-56."""
    network = name.partition("-")[0]
    config = tops.TernaryConfig(zeros=zeros, pattern=pattern)
    given: dict[str, Any] = {"teacher": "resnet56", "config": config} | options
    rate = given.pop("rate", 0.05)
    return Run(name, network, network, _sgd(epochs, rate, given.pop("decay", 1e-4)), **given)


_LIST = [
    Run("resnet20", "resnet20", "original", _sgd(8, 0.05, 2e-4)),
    Run("resnet56", "resnet56", "original", _sgd(6, 0.05, 2e-4)),
    Run("resnet18h", "resnet18", "", _sgd(20, 0.2, 5e-4), width=32),
    # How to train: short runs to choose from.
    _ternary("resnet20-try", 0.66, "1x4", 4),
    _ternary("resnet20-try-early", 0.66, "1x4", 4, pruner={"ternary_at": 0.2, "end": 0.4}),
    _ternary("resnet20-try-rate", 0.66, "1x4", 4, rate=0.15),
]
RUNS = {run.name: run for run in _LIST}

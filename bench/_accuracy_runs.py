# SPDX-License-Identifier: Apache-2.0
"""The runs of bench/accuracy.py."""

from __future__ import annotations

from dataclasses import dataclass

from ternary_ops.study.fit import Course


@dataclass(frozen=True)
class Run:
    name: str
    network: str
    start: str
    course: Course
    width: int = 16


_DENSE = Course(8, 0.05, 128, optimizer="sgd", weight_decay=5e-4)
_LIST = [
    Run(
        "resnet20", "resnet20", "original", Course(8, 0.05, 128, optimizer="sgd", weight_decay=2e-4)
    ),
    Run(
        "resnet56", "resnet56", "original", Course(6, 0.05, 128, optimizer="sgd", weight_decay=2e-4)
    ),
    Run(
        "resnet18h",
        "resnet18",
        "",
        Course(20, 0.2, 128, optimizer="sgd", weight_decay=5e-4),
        width=32,
    ),
]
RUNS = {run.name: run for run in _LIST}

# SPDX-License-Identifier: Apache-2.0
"""The runs of bench/accuracy.py: what is trained from what, how long, to how many zeros."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import ternary_ops as tops
from ternary_ops.study.fit import Course


@dataclass(frozen=True)
class Run:
    """One training.

    network: "resnet20", "resnet56" or "resnet18", for 32x32 images. start: "" from scratch,
    "original" from the weights of the data pack, else the run whose network is compressed.
    teacher: the run whose logits teach. config: None for a dense float network, which ends as a
    dense int8 file. reorder: channels are put into quads by size first. budget: bytes for which
    tops.plan chooses zeros layer by layer. rules and pruner: further arguments of tops.plan and
    Pruner.
    """

    name: str
    network: str
    start: str
    course: Course
    width: int = 16
    teacher: str = ""
    config: tops.TernaryConfig | None = None
    reorder: bool = False
    budget: int = 0
    rules: dict[str, tops.TernaryConfig] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)

    @property
    def parent(self) -> str:
        """The dense run of the same architecture that accuracy is compared with."""
        return "resnet18h" if self.network == "resnet18" else self.network


# The most accurate of the dense networks teaches all others, compressed and narrow alike.
TEACHER = "resnet56"


def _sgd(epochs: int, rate: float, decay: float, **options: Any) -> Course:
    return Course(epochs, rate, 128, optimizer="sgd", weight_decay=decay, **options)


def _from_scratch(epochs: int) -> Course:
    return _sgd(epochs, 0.2, 5e-4, bfloat16=True)


def _ternary(name: str, zeros: float, pattern: str, epochs: int, **options: Any) -> Run:
    """A compressed copy of the dense network that the name begins with."""
    start = name.partition("-")[0]
    config = tops.TernaryConfig(
        weights=options.pop("weights", "ternary"),
        ternarizer=options.pop("ternarizer", "ptq"),
        zeros=zeros,
        pattern=pattern,
    )
    given: dict[str, Any] = {"teacher": TEACHER, "config": config} | options
    course = _sgd(epochs, given.pop("rate", 0.05), given.pop("decay", 1e-4), bfloat16=True)
    course = replace(
        course,
        optimizer=given.pop("optimizer", course.optimizer),
        batch=given.pop("batch", course.batch),
    )
    network, width = ("resnet18", 32) if start == "resnet18h" else (start, 16)
    return Run(name, network, start, course, width, **given)


def _narrow(network: str, width: int, epochs: int) -> Run:
    """A dense network with fewer channels, from scratch, with the same teacher."""
    name = f"{network}-width{width}"
    return Run(name, network, "", _from_scratch(epochs), width, teacher=TEACHER)


def _try(name: str, **options: Any) -> Run:
    return _ternary(name, 0.66, "1x4", 4, **options)


_LIST = [
    Run("resnet20", "resnet20", "original", _sgd(8, 0.05, 2e-4)),
    Run("resnet56", "resnet56", "original", _sgd(6, 0.05, 2e-4)),
    Run("resnet18h", "resnet18", "", _from_scratch(20), width=32),
    # Short runs from which the recipe of the long ones was chosen.
    _try("resnet20-try"),
    _try("resnet20-try-early", pruner={"ternary_at": 0.1, "end": 0.5}),
    _try("resnet20-try-rate", rate=0.15),
    _try("resnet20-try-batch", batch=64, pruner={"ternary_at": 0.1, "end": 0.5}),
    _try("resnet20-try-adam", optimizer="adamw", rate=2e-3),
    _try("resnet20-try-regrow", pruner={"nested": False}),
    _try("resnet20-try-normalize", pruner={"normalize": True}),
    _try("resnet20-try-reorder", reorder=True),
    _try("resnet20-try-auto", budget=32_400),
    _try("resnet20-try-late", pruner={"ternary_at": 0.7}),
    _try("resnet20-try-direct", pruner={"ternary_at": 0.0}),
    # Files of 1/49, 1/30 and 1/110 of float32 or less, and nine quads in ten empty.
    _ternary("resnet56-quads74", 0.738, "1x4", 14),
    _ternary("resnet20-quads53", 0.53, "1x4", 20),
    _ternary("resnet56-quads90", 0.90, "1x4", 6),
    _ternary("resnet18h-quads95", 0.95, "1x4", 6),
    _ternary("resnet56-element89", 0.886, "element", 4),
    # Dense rivals, and compressed networks that take as long: ResNet-20 with 85 % empty 8-bit
    # quads and with 10 channels, ResNet-56 so and with 9, ResNet-18 with 95 % and with 18.
    _ternary("resnet20-int8quads85", 0.85, "1x4", 6, weights="int8"),
    _narrow("resnet20", 10, 24),
    _ternary("resnet56-int8quads85", 0.85, "1x4", 4, weights="int8"),
    _narrow("resnet56", 9, 16),
    _narrow("resnet18", 18, 20),
    # Patterns and ternarizers under one budget, beside resnet20-try.
    _ternary("resnet20-quads90", 0.90, "1x4", 4),
    _ternary("resnet20-element90", 0.90, "element", 4),
    _ternary("resnet20-twn66", 0.66, "1x4", 4, ternarizer="twn"),
    _ternary("resnet20-ttq66", 0.66, "1x4", 4, ternarizer="ttq"),
]
RUNS = {run.name: run for run in _LIST}

# SPDX-License-Identifier: Apache-2.0
"""The runs of bench/accuracy.py: what is trained from what, how long, to how many zeros."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from _experiment import Experiment

import ternary_ops as tops
from ternary_ops.train.config import TrainConfig


@dataclass(frozen=True)
class Run(Experiment[TrainConfig]):
    """One training for CIFAR-10.

    network: "resnet20", "resnet56" or "resnet18", for 32x32 images. start: "" from scratch,
    "original" from the weights of the data pack, else the run whose network is compressed.
    teacher: the run whose logits teach. config: None for a dense float network, which ends as a
    dense int8 file. reorder: channels are put into quads by size first. budget: bytes for which
    tops.plan chooses zeros layer by layer. rules and pruner: further arguments of tops.plan and
    Pruner. goes_on: the compressed run of the same plan, but for zeros, whose trained weights are
    trained on, ternary from the first step.
    """

    network: str
    width: int = 16
    teacher: str = ""
    reorder: bool = False
    budget: int = 0
    rules: dict[str, tops.TernaryConfig] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)
    goes_on: str = ""

    @property
    def parent(self) -> str:
        """The dense run of the same architecture that accuracy is compared with."""
        return "resnet18h" if self.network == "resnet18" else self.network


# The most accurate of the dense networks teaches all others, compressed and narrow alike.
TEACHER = "resnet56"


def _sgd(epochs: int, rate: float, decay: float, **options: Any) -> TrainConfig:
    return TrainConfig(epochs, rate, 128, optimizer="sgd", weight_decay=decay, **options)


def _from_scratch(epochs: int) -> TrainConfig:
    return _sgd(epochs, 0.2, 5e-4, bfloat16=True)


def _ternary(name: str, zeros: float, pattern: str, epochs: int, **options: Any) -> Run:
    """A compressed copy of the dense network that the name begins with.

    stages: zeros stage by stage, in place of one ranking of all quads, which would take them from
    the last stage and the time from none: a quad of the first costs 16 times as much. eights: names
    of layers, within stages, that keep 8-bit weights.
    """
    eights = options.pop("eights", ())
    start = name.partition("-")[0]
    config = tops.TernaryConfig(
        weights=options.pop("weights", "ternary"),
        ternarizer=options.pop("ternarizer", "ptq"),
        zeros=zeros,
        pattern=pattern,
    )
    given: dict[str, Any] = {"teacher": TEACHER} | options
    shares = given.pop("stages", ())
    rules = {f"layer{n}.*": replace(config, zeros=z) for n, z in enumerate(shares, 1)}
    given["rules"] = rules | {
        name: replace(rules[f"{name.partition('.')[0]}.*"], weights="int8") for name in eights
    }
    course = _sgd(epochs, given.pop("rate", 0.05), given.pop("decay", 1e-4), bfloat16=True)
    course = replace(
        course,
        optimizer=given.pop("optimizer", course.optimizer),
        batch=given.pop("batch", course.batch),
    )
    network, width = ("resnet18", 32) if start == "resnet18h" else (start, 16)
    return Run(name, start, config, course, network, width, **given)


def _longer(name: str, of: str, zeros: float, pattern: str, epochs: int) -> Run:
    """Trained on from run `of` with a smaller rate, to a few more zeros."""
    pruner = {"ternary_at": 0.0}
    return _ternary(name, zeros, pattern, epochs, rate=0.02, goes_on=of, pruner=pruner)


def _again(name: str, of: str, zeros: float, epochs: int, **options: Any) -> Run:
    """Trained on from run `of` at a high rate, ternary from the first step: zeros grow once more
    from none, and are complete after three tenths of the time."""
    pruner = {"ternary_at": 0.0, "end": 0.3}
    given: dict[str, Any] = {"rate": 0.15, "decay": 2e-4, "goes_on": of, "pruner": pruner} | options
    return _ternary(name, zeros, "1x4", epochs, **given)


def _narrow(network: str, width: int, epochs: int) -> Run:
    """A dense network with fewer channels, from scratch, with the same teacher."""
    name = f"{network}-width{width}"
    return Run(name, "", None, _from_scratch(epochs), network, width, teacher=TEACHER)


def _try(name: str, zeros: float = 0.66, pattern: str = "1x4", **options: Any) -> Run:
    """A short run."""
    return _ternary(name, zeros, pattern, 4, **options)


# Zeros of the stages for 90 % and 95 % of all quads.
_R56 = (0.8, 0.87, 0.91391)
_R18 = (0.78, 0.85, 0.92, 0.96674)
# Zeros of the stages for 80 %.
_R20 = (0.65, 0.75, 0.823)
_EIGHT = ("layer1.*", "layer2.*")
# What is zero already stays zero, and nothing else becomes it, or at once.
_SAME_MASKS = {"ternary_at": 0.0, "schedule": "one_shot", "start": 0.0, "end": 0.02}
_LIST = [
    Run("resnet20", "original", None, _sgd(8, 0.05, 2e-4), "resnet20"),
    Run("resnet56", "original", None, _sgd(6, 0.05, 2e-4), "resnet56"),
    Run("resnet18h", "", None, _from_scratch(20), "resnet18", width=32),
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
    _ternary("resnet56-quads74", 0.738, "1x4", 12),
    _ternary("resnet20-quads53", 0.53, "1x4", 20),
    # Trained on for a few epochs, until the file is small enough.
    _longer("resnet56-quads75", "resnet56-quads74", 0.746, "1x4", 4),
    _longer("resnet20-quads54", "resnet20-quads53", 0.54, "1x4", 4),
    _ternary("resnet56-quads90", 0.90, "1x4", 8, stages=_R56),
    _ternary("resnet18h-quads95", 0.95, "1x4", 8, stages=_R18),
    # Trained on for long, with 8-bit quads where ternary ones cost most.
    _again("resnet56-int8quads90", "resnet56-quads90", 0.90, 20, weights="int8", stages=_R56),
    _again(
        *("resnet56-quads90-on", "resnet56-int8quads90", 0.90, 12),
        **{"stages": _R56, "pruner": _SAME_MASKS},
    ),
    _again("resnet20-int8quads80", "resnet20-quads53", 0.80, 20, weights="int8", stages=_R20),
    _again("resnet18h-mixed95", "resnet18h-quads95", 0.95, 20, stages=_R18, eights=_EIGHT),
    _again(
        *("resnet18h-mixed95-on", "resnet18h-mixed95", 0.95, 10),
        **{"stages": _R18, "eights": (*_EIGHT, "layer3.0.*"), "pruner": _SAME_MASKS},
    ),
    _ternary("resnet56-element89", 0.886, "element", 4),
    _ternary(
        *("resnet56-element89-on", 0.89, "element", 7),
        **{"rate": 0.1, "goes_on": "resnet56-element89", "pruner": _SAME_MASKS},
    ),
    _ternary(
        *("resnet56-element89-last", 0.89, "element", 5),
        **{"rate": 0.02, "goes_on": "resnet56-element89-on", "pruner": _SAME_MASKS},
    ),
    # Dense networks with fewer channels, to compare with compressed ones that take as long.
    # ResNet-56 with 10: as with 90 % empty quads on AVX-512, longer than at 75 % on AVX2.
    _narrow("resnet20", 10, 24),
    _narrow("resnet20", 12, 24),
    _narrow("resnet56", 10, 20),
    _narrow("resnet18", 12, 20),
    _narrow("resnet18", 16, 20),
    _narrow("resnet18", 20, 20),
    # What costs accuracy at nine empty quads in ten: ternary weights, zeros that come late, zeros
    # where time is, which one ranking of all quads spares, a low rate, masks that are final?
    # Beside resnet20-quads90.
    _try("resnet20-quads90-early", 0.90, pruner={"end": 0.5}),
    _try("resnet20-quads90-first", 0.90, pruner={"end": 0.4, "ternary_at": 0.6}),
    _try("resnet20-quads90-stages", 0.90, stages=(0.8, 0.87, 0.9143)),
    _try("resnet20-int8quads90", 0.90, weights="int8"),
    _try("resnet20-int8quads90-rate", 0.90, weights="int8", rate=0.15, decay=2e-4),
    _try("resnet20-int8quads90-regrow", 0.90, weights="int8", pruner={"nested": False}),
    # Patterns and ternarizers under one budget, beside resnet20-try.
    _try("resnet20-quads90", 0.90),
    _try("resnet20-element90", 0.90, "element"),
    _try("resnet20-twn66", ternarizer="twn"),
    # Its magnitudes get the gradients of a whole layer: steps of SGD at this rate are too long.
    _try("resnet20-ttq66", ternarizer="ttq", optimizer="adamw", rate=2e-3),
]
RUNS = {run.name: run for run in _LIST}

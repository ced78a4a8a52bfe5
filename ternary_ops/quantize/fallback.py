# SPDX-License-Identifier: Apache-2.0
"""Give the layers that hurt most float activations or 8-bit weights, until a target is met."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import ternary_ops.nn as tnn
from ternary_ops.compiler.rounding import rounding
from ternary_ops.errors import BadConfig, UnsupportedModel, first_line, need
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.quantize.layer_sensitivity import PARTS, Effect, Probe, Sensitivity
from ternary_ops.table import Table

_log = logging.getLogger(__name__)
_COLUMNS = ("layer", "change", "SQNR dB after", "KL", "top-1 equal", "target", "reason")


@dataclass(frozen=True)
class Change:
    """One layer that fell back: the change, its reason, the effect of everything still quantized
    after it, and `reached`, the value of the target's metric.
    """

    name: str
    change: str
    reason: str
    after: Effect
    reached: float


@dataclass(frozen=True)
class FallbackReport:
    """Result of fallback_. str() is a table.

    rules: the configs of the changed layers, for plan(rules=...) of the same network.
    """

    target: str
    before: Effect
    reached_before: float
    changes: tuple[Change, ...]
    rules: dict[str, TernaryConfig]

    def __str__(self) -> str:
        """The state before, then one line per change, with its reason."""
        start = ("before", "", *self.before.cells(), f"{self.reached_before:.4g}", "")
        cells = [
            (row.name, row.change, *row.after.cells(), f"{row.reached:.4g}", row.reason)
            for row in self.changes
        ]
        notes = (f"target: {self.target}",)
        return str(Table(_COLUMNS, [start, *cells], notes=notes, words=("change", "reason")))


@dataclass(frozen=True)
class _Target:
    """min_sqnr, min_agreement or max_drop, and its value."""

    name: str
    value: float

    def reached(self, probe: Probe) -> tuple[Effect, float]:
        """The effect of the present state, and the figure that is compared with the value."""
        effect = probe.total()
        if self.name == "min_sqnr":
            return effect, effect.sqnr
        if self.name == "min_agreement":
            if effect.agreement is None:
                raise _no_logits(self.name)
            return effect, effect.agreement
        return effect, _accuracy(probe, probe.reference) - _accuracy(probe, probe.total_outputs())

    def met(self, figure: float) -> bool:
        """True if a figure meets the target."""
        return figure <= self.value if self.name == "max_drop" else figure >= self.value

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}"


@torch.no_grad()
def fallback_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    max_drop: float | None = None,
    budget: int | None = None,
    parts: Sequence[str] = PARTS,
    progress: bool = False,
) -> FallbackReport:
    """Change layers in place, the most sensitive (`sensitivity`) first, until a target is met.

    model          quantized and calibrated
    batches        as for calibrate; max_drop needs (input, labels [N]) pairs
    min_sqnr       decibels between the float network's output and the quantized one's
    min_agreement  share of samples whose largest output stays the same
    max_drop       largest loss of top-1 accuracy against the float network, 0.01: one point
    budget         largest number of changes; None: no limit
    parts          what may change: "activations" (uint8 -> float32) and "weights" (ternary -> int8,
                   pruned weights stay zero). Frozen layers keep their weights.
    progress       show a bar on stderr

    Give exactly one target. It is checked after every change with everything still quantized, by
    the fake-quantized forward. A network that already meets it is not changed.

    Raises UnsupportedModel, with the model as it was, when the budget or the layers run out first,
    and as sensitivity does; BadConfig for bad arguments.
    """
    target = _one_target(min_sqnr=min_sqnr, min_agreement=min_agreement, max_drop=max_drop)
    if budget is not None and (type(budget) is not int or budget < 0):
        raise BadConfig(need("budget as a count >= 0, or None", repr(budget), "Correct it."))
    probe = Probe(model, batches, parts)
    before, first = target.reached(probe)
    if target.met(first):
        return FallbackReport(str(target), before, first, (), {})
    candidates = _candidates(probe, progress)
    former = [(layer, _state(layer)) for layer in probe.layers.values()]
    changes: list[Change] = []
    try:
        for rank, row in candidates[:budget]:
            change = _change(probe.layers[row.name], row.part)
            after, figure = target.reached(probe)
            reason = f"{row.effect.sqnr:.1f} dB alone, rank {rank} of the report"
            changes.append(Change(row.name, change, reason, after, figure))
            _log.info("%s: %s (%s)", row.name, change, reason)
            if target.met(figure):
                rules = {c.name: probe.layers[c.name].config for c in changes}
                return FallbackReport(str(target), before, first, tuple(changes), rules)
        best = changes[-1].reached if changes else first
        got = f"{best:.4g} after {len(changes)} of {len(candidates)} changes"
        do = "Allow a larger budget, calibrate anew, or train the network as it is quantized."
        raise UnsupportedModel(need(f"{target} by fallback_", got, do))
    except BaseException:
        for layer, state in former:
            _restore(layer, state)
        raise


def advice(model: object, sample: Any, min_sqnr: float) -> str:
    """The layers of a quantized network whose inputs to keep in float, so that its output has
    `min_sqnr` decibels beside that with float activations, and where its program loses more than
    the network in torch; "" for what is no such network.

    Found on a copy, by fallback_.
    """
    network = copy_of(unwrap(model)) if isinstance(model, nn.Module) else nn.Module()
    if not any(isinstance(m, tnn.TernaryLayer) for m in network.modules()):
        return ""
    x = torch.as_tensor(sample)
    between = rounding(network, x)
    first, said = between.first(), _layers_to_change(network, x, min_sqnr)
    if first is None or between.loss < 1:
        return said
    return f"{said}; rounding between layers costs {between.loss:.1f} dB, first in {first.place}"


def _layers_to_change(network: nn.Module, x: Tensor, min_sqnr: float) -> str:
    """Advice by fallback_, which changes the network."""
    try:
        found = fallback_(network, [x], min_sqnr=min_sqnr, parts=("activations",))
    except UnsupportedModel as error:
        return f"float activations do not help: {first_line(error)}"
    if not found.changes:
        return f"8-bit activations alone: {found.before.sqnr:.1f} dB; the weights differ more"
    names = ", ".join(change.name for change in found.changes)
    return f"fall back on float activations in {names}: {found.changes[-1].reached:.1f} dB"


def _candidates(probe: Probe, progress: bool) -> list[tuple[int, Sensitivity]]:
    """Layers that can change, by falling effect on the output, with their rank among all rows."""
    rows = sorted(probe.rows(progress), key=lambda row: row.effect.sqnr)
    return [
        (rank, row)
        for rank, row in enumerate(rows, 1)
        if row.part == "activations" or row.form == "ternary"
    ]


def _change(layer: tnn.TernaryLayer, part: str) -> str:
    """Apply a remedy; returns its description."""
    if part == "weights":
        layer.config = replace(layer.config, weights="int8")
        return "weights ternary -> int8"
    form = layer.config.activations
    layer.config = replace(layer.config, activations="float32")
    layer.input_range = None
    layer.input_shift.requires_grad_(False)
    return f"activations {form} -> float32"


_State = tuple[TernaryConfig, Callable[[], None], bool]


def _state(layer: tnn.TernaryLayer) -> _State:
    return layer.config, layer.kept_ranges(), layer.input_shift.requires_grad


def _restore(layer: tnn.TernaryLayer, state: _State) -> None:
    layer.config, restore_ranges, learned = state
    restore_ranges()
    layer.input_shift.requires_grad_(learned)


def _one_target(**given: float | None) -> _Target:
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        names = ", ".join(given)
        got = ", ".join(name for name, _ in chosen) or "none"
        raise BadConfig(need(f"one target of {names} for fallback_", got, "Pass one."))
    name, value = chosen[0]
    share = name != "min_sqnr"
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not number or (share and not 0 <= value <= 1):
        kind = "a share in 0..1" if share else "a number of decibels"
        raise BadConfig(need(f"{name} as {kind}", repr(value), "Correct it."))
    return _Target(name, float(value))


def _accuracy(probe: Probe, outputs: Sequence[Tensor]) -> float:
    right = 0
    for y, labels in zip(outputs, probe.labels, strict=True):
        if y.ndim != 2 or y.shape[1] < 2:
            raise _no_logits("max_drop")
        if not isinstance(labels, Tensor) or labels.shape != y.shape[:1]:
            got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            do = "Pass batches of (input, labels)."
            raise BadConfig(need("labels [N] with every batch for max_drop", got, do))
        right += int((y.argmax(1) == labels.to(y.device)).sum())
    return right / sum(len(y) for y in outputs)


def _no_logits(name: str) -> UnsupportedModel:
    do = "Use min_sqnr."
    return UnsupportedModel(need(f"outputs [N, K] with K >= 2 for {name}", "others", do))

# SPDX-License-Identifier: Apache-2.0
"""Sensitivity: the effect of each layer's quantization alone on a network's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.signature import result
from ternary_ops.graph.trace import TraceFailed
from ternary_ops.graph.usage import eval_graph, idle_layers
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.progress import progress_bars
from ternary_ops.table import Table, write_csv

PARTS = ("activations", "weights")
Layers = dict[str, "tnn.TernaryLayer"]
_COLUMNS = ("layer", "part", "as", "SQNR dB", "KL", "top-1 equal")
_WORDS = ("part", "as")


@dataclass(frozen=True)
class Effect:
    """Distance of outputs from reference outputs.

    noise      summed squared difference over summed square of the reference
    kl         mean KL divergence softmax(reference) || softmax(output); None unless [N, K >= 2]
    agreement  share of samples with the same largest output; None unless [N, K >= 2]
    """

    noise: float
    kl: float | None = None
    agreement: float | None = None

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise in decibels; infinite where outputs are equal."""
        return math.inf if self.noise == 0 else -10 * math.log10(self.noise)

    def cells(self) -> tuple[str, str, str]:
        """SQNR, KL and agreement for a table."""
        kl = "-" if self.kl is None else f"{self.kl:.2e}"
        return f"{self.sqnr:.1f}", kl, "-" if self.agreement is None else f"{self.agreement:.1%}"


@dataclass(frozen=True)
class Sensitivity:
    """One part ("activations" or "weights") of one layer, quantized alone to `form`."""

    name: str
    part: str
    form: str
    effect: Effect


@dataclass(frozen=True)
class SensitivityReport:
    """Rows, the largest effect first; `total`: everything quantized at once. str() is a table."""

    rows: tuple[Sensitivity, ...]
    total: Effect
    samples: int

    def __str__(self) -> str:
        """One line per layer and part, then the total."""
        cells = [(row.name, row.part, row.form, *row.effect.cells()) for row in self.rows]
        total = ("all at once", "", "", *self.total.cells())
        notes = (f"{self.samples} samples; each line is one part quantized, the rest float",)
        return str(Table(_COLUMNS, [*cells, total], notes=notes, words=_WORDS))

    def to_csv(self, path: str | Path) -> None:
        """Write the rows, with a last one named "" for the total, atomically."""
        named = [*self.rows, Sensitivity("", "", "", self.total)]
        write_csv(
            path,
            [
                {
                    "layer": row.name,
                    "part": row.part,
                    "form": row.form,
                    "sqnr_db": row.effect.sqnr,
                    "kl": row.effect.kl,
                    "agreement": row.effect.agreement,
                }
                for row in named
            ],
        )


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    parts: Sequence[str] = PARTS,
    *,
    progress: bool = False,
) -> SensitivityReport:
    """Quantize one part of one layer at a time and compare the output with the float network's.

    model    quantized and calibrated; not changed
    batches  as for calibrate; kept on the model's device while this runs
    parts    "activations": inputs to uint8; "weights": to ternary or int8, from the latent weights.
             Frozen layers keep their codes, as they have no float counterpart. Pass
             ("activations",) for a network that was trained as ternary.
    progress show a bar on stderr

    The forward is the fake-quantized one of the layers, in eval mode. One pass over the batches per
    line. Raises UnsupportedModel for a model without quantized layers, uncalibrated layers (all of
    them named), an output that is not one tensor, or no sample; BadConfig for other parts.
    """
    probe = Probe(model, batches, parts)
    rows = probe.rows(progress)
    order = sorted(rows, key=lambda row: row.effect.sqnr)
    return SensitivityReport(tuple(order), probe.total(), sum(len(x) for x in probe.inputs))


class Probe:
    """A model whose parts are quantized and restored one by one, and its float outputs."""

    def __init__(self, model: nn.Module, batches: Iterable[Any], parts: Sequence[str]) -> None:
        """Check everything and compute the float answers."""
        self.model = model = unwrap(model)
        self.layers = quantized_layers(model)
        self.parts = _check_parts(parts)
        pairs = list(samples(model, batches))
        self.inputs = [x for x, _ in pairs]
        self.labels = [label for _, label in pairs]
        with self._quantized(()):
            self.reference = self.outputs()

    def present(self) -> list[tuple[str, str]]:
        """(layer, part) of everything quantized that could be float."""
        return [
            (name, part)
            for name, layer in self.layers.items()
            for part in self.parts
            if (layer.config.integer_input if part == "activations" else layer.phase == "ternary")
        ]

    def rows(self, progress: bool) -> list[Sensitivity]:
        """Effect of every part quantized alone."""
        found = []
        present = self.present()
        with progress_bars(quiet=not progress) as bars:
            with bars.stage("sensitivity", len(present)) as advance:
                for name, part in present:
                    with self._quantized([(name, part)]):
                        effect = _effect(self.reference, self.outputs())
                    config = self.layers[name].config
                    form = config.activations if part == "activations" else config.weights
                    found.append(Sensitivity(name, part, form, effect))
                    advance()
        return found

    def total(self) -> Effect:
        """The effect of all parts at once."""
        return _effect(self.reference, self.total_outputs())

    def total_outputs(self) -> list[Tensor]:
        """Outputs with all parts quantized."""
        with self._quantized(self.present()):
            return self.outputs()

    def outputs(self) -> list[Tensor]:
        """The model's output for every batch, as float64."""
        found = []
        for x in self.inputs:
            y = result(self.model, x)
            if not y.is_floating_point():
                raise UnsupportedModel(
                    need(
                        "for sensitivity a model with one float output tensor",
                        y.dtype,
                        "Wrap the model in one that returns the tensor that counts.",
                    )
                )
            found.append(y.double())
        return found

    @contextmanager
    def _quantized(self, chosen: Sequence[tuple[str, str]]) -> Iterator[None]:
        """Only these parts quantized, eval mode; everything is put back."""
        modes = {module: module.training for module in self.model.modules()}
        undo: list[Callable[[], object]] = []
        try:
            self.model.eval()
            for name, part in self.present():
                if (name, part) not in chosen:
                    undo.append(_make_float(self.layers[name], part))
            yield
        finally:
            for back in undo:
                back()
            for module, mode in modes.items():
                module.training = mode


def quantized_layers(model: nn.Module) -> Layers:
    """The trainable quantized layers that run in eval mode, by name; UnsupportedModel without any,
    or uncalibrated.
    """
    layers: Layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, tnn.TernaryLayer)
    }
    if not layers:
        do = "Call quantize_ and calibrate first; a packed model is past it."
        raise UnsupportedModel(need("quantized layers for sensitivity", "none", do))
    for name in idle_layers(layers, _graph(model)):
        del layers[name]
    unset = [
        name
        for name, layer in layers.items()
        if layer.config.integer_input and layer.input_params() is None
    ]
    if unset:
        do = "Call calibrate(model, batches) first."
        raise UnsupportedModel(
            need("ranges of all uint8 inputs for sensitivity", f"none for {', '.join(unset)}", do)
        )
    return layers


def _graph(model: nn.Module) -> fx.Graph | None:
    try:
        return eval_graph(model)
    except TraceFailed:  # calibrate's count of calls has to do
        return None


def _make_float(layer: tnn.TernaryLayer, part: str) -> Callable[[], object]:
    """Take one part's quantization away; returns what puts it back."""
    if part == "weights":
        restore = layer.kept_phase()
        layer.phase = "float"
        return restore
    restore = layer.kept_ranges()
    layer.input_range = None
    return restore


def _check_parts(parts: Sequence[str]) -> tuple[str, ...]:
    check_type("parts", parts, (str, Sequence), f"Pass one or both of {PARTS}.")
    given = (parts,) if isinstance(parts, str) else tuple(parts)
    if not given or not set(given) <= set(PARTS):
        raise BadConfig(need(f"parts as one or both of {PARTS}", repr(parts), "Correct it."))
    return given


def _effect(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Effect:
    pairs = list(zip(reference, outputs, strict=True))
    signal = sum(float(a.square().sum()) for a, _ in pairs)
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    noise = error / signal if signal else (math.inf if error else 0.0)
    if any(a.ndim != 2 or a.shape[1] < 2 for a, _ in pairs):
        return Effect(noise)
    count = sum(len(a) for a, _ in pairs)
    kl = sum(
        float(F.kl_div(F.log_softmax(b, 1), F.log_softmax(a, 1), reduction="sum", log_target=True))
        for a, b in pairs
    )
    same = sum(int((a.argmax(1) == b.argmax(1)).sum()) for a, b in pairs)
    return Effect(noise, max(kl, 0.0) / count, same / count)

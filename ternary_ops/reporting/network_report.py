# SPDX-License-Identifier: Apache-2.0
"""Report of a compressed network: bytes, zeros, multiply-adds, time and agreement.

Sizes come in forms that must not be confused, each over the same tensors (the weights and
biases of every convolution and linear layer, BatchNorm folded in; scales count where they exist):

fp32    4 bytes a weight and a bias
packed  2 bits a ternary weight, 8 bits an int8 weight, 4 bytes a scale, a bias, a float weight
gzip,xz the packed form as one stream through a general compressor
file    the file as it lies on disk, headers included
bound   the least that an entropy coder of this pattern can reach for the weights (`io.sizes`)
stored  bits of the weights alone in formats of the literature, by formula (`io.storage_formats`)
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ternary_ops.charts import bars, new_figure, save_figure
from ternary_ops.errors import UnsupportedModel, UnsupportedShape, need
from ternary_ops.io.sizes import general_compressors
from ternary_ops.io.storage_formats import cheapest
from ternary_ops.reporting.layers import REPEATS, Array, Layer, layers_of
from ternary_ops.reporting.per_weight import Efficiency, efficiency
from ternary_ops.table import Table, write_csv

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ternary_ops.runtime import Program

_ENOUGH = 20.0  # decibels: a tenth of the outputs


@dataclass(frozen=True)
class Comparison:
    """A second network on the same sample; sqnr: the square of its outputs over that of the
    difference, in decibels.
    """

    ms: float
    agreement: float
    largest_difference: float
    sqnr: float = math.inf


@dataclass(frozen=True)
class Report:
    """Figures of a program on one sample; print it, or use to_csv and plot."""

    layers: tuple[Layer, ...]
    sample: tuple[int, ...]
    file: int
    ms: float
    compressors: dict[str, int]
    against: Comparison | None = None
    advice: str = ""

    def total(self, field: str, kind: str | None = None) -> float:
        """Sum of a numeric field over the layers, or over those of one kind."""
        return float(sum(getattr(row, field) for row in self.layers if kind in (None, row.kind)))

    def zeros(self, unit: str) -> float:
        """Percent of empty quads, or of zero weights ("weights"), in the pruned layers."""
        fields = {"quads": ("empty_quads", "quads"), "weights": ("zeros", "weights")}
        rows = [row for row in self.layers if row.pruned]
        part, whole = (sum(getattr(row, name) for row in rows) for name in fields[unit])
        return 100 * part / whole if whole else 0.0

    def __str__(self) -> str:
        """Its tables."""
        return "\n\n".join(map(str, self.tables()))

    def tables(self) -> tuple[Table, ...]:
        """The layers, what they count, sizes, storage formats, and the whole."""
        return (
            *(self.layer_table(), self.account_table(), self.size_table()),
            *(self.storage_table(), self.speed_table()),
        )

    def layer_table(self) -> Table:
        """One row per layer; zeros of the plan beside those that are there, where it had any."""
        asked = any(row.planned for row in self.layers)
        columns = (
            *("layer", "kind", "O,R,S,I", "empty quads", "zeros", "MACs", "ms"),
            *("fp32", "packed", "bound"),
            *(("planned zeros", "there") if asked else ()),
        )
        rows = [
            (
                row.name,
                row.kind,
                ",".join(map(str, row.shape)),
                f"{100 * row.empty_quads / row.quads:.1f} %",
                f"{100 * row.zeros / row.weights:.1f} %",
                f"{row.macs:,}",
                f"{row.ms:.3f}",
                f"{row.fp32:,}",
                f"{row.packed:,}",
                f"{row.bound:,.0f}",
                *((row.planned, row.reached) if asked else ()),
            )
            for row in self.layers
        ]
        return Table(columns, rows)

    def account_table(self) -> Table:
        """Weights, nonzero ones, stored bits in the cheapest format, multiply-adds and time, side
        by side: one row per layer, and all of them.
        """
        rows = [
            (
                row.name,
                *(f"{n:,}" for n in (row.weights, row.nonzero, row.macs)),
                f"{row.macs * row.nonzero / row.weights:,.0f}",
                f"{row.stored[cheapest(row.stored)]:,}",
                cheapest(row.stored),
                f"{row.ms:.3f}",
            )
            for row in self.layers
        ]
        left = sum(row.macs * row.nonzero / row.weights for row in self.layers)
        whole = (self.total("weights"), self.total("nonzero"), self.total("macs"), left)
        bits = sum(row.stored[cheapest(row.stored)] for row in self.layers)
        cells = [f"{n:,.0f}" for n in (*whole, bits)]
        rows.append(("all layers", *cells, "", f"{self.total('ms'):.3f}"))
        columns = ("layer", "weights", "nonzero", "MACs", "of nonzero", "stored bits", "as", "ms")
        return Table(columns, rows, words=("as",))

    def storage_table(self) -> Table:
        """Bytes of all layers in each storage format, and in the cheapest one of each layer, beside
        the file; scales and biases in all of them.
        """
        beside = self.total("vectors")
        names = {name: None for row in self.layers for name in row.stored}
        sums = {name: sum(row.stored[name] for row in self.layers) for name in names}
        sums["cheapest of each layer"] = sum(min(row.stored.values()) for row in self.layers)
        rows = [
            (name, f"{bits / 8 + beside:,.0f}", f"{bits / self.total('weights'):.3f}")
            for name, bits in sums.items()
        ]
        coded = 8 * (self.file - beside) / self.total("weights")
        rows.append(("this file, entropy-coded", f"{self.file:,}", f"{coded:.3f}"))
        notes = ("by formula, without headers; the file has its headers, and shorter biases",)
        return Table(("stored as", "bytes", "bits a weight"), rows, notes=notes)

    def efficiency(self, correct: int, of: int) -> Efficiency:
        """Figures of accuracy per weight that is left, see reporting.per_weight; correct: samples
        that the network got right, of so many.
        """
        return efficiency(correct, of, int(self.total("nonzero")))

    def size_table(self) -> Table:
        """Bytes by kind of weight; the file only as a whole."""
        rows: list[tuple[str, ...]] = []
        for kind in ("ternary", "int8", "float"):
            count = int(self.total("weights", kind))
            if count:
                rows.append((f"{kind} layers", f"{count:,}", *self._bytes(kind), "", "", ""))
        streams = [f"{size:,}" for size in self.compressors.values()]
        whole = (f"{int(self.total('weights')):,}", *self._bytes(None))
        rows.append(("all layers", *whole, f"{self.file:,}", *streams))
        fp32, packed = self.total("fp32"), self.total("packed")
        notes = (
            f"fp32 / packed = {fp32 / packed:.1f}, fp32 / file = {fp32 / self.file:.1f} (all)",
            "all but fp32 count scales and biases; the file its headers too",
        )
        columns = ("bytes of", "weights", "fp32", "packed", "bound", "file", *self.compressors)
        return Table(columns, rows, notes=notes)

    def speed_table(self) -> Table:
        """Zeros, multiply-adds, time and agreement."""
        rows = [
            ("empty quads of the pruned layers", f"{self.zeros('quads'):.2f} %"),
            ("zero weights of the pruned layers", f"{self.zeros('weights'):.2f} %"),
            (f"multiply-adds of {list(self.sample)}", f"{int(self.total('macs')):,}"),
            ("ms, this program", f"{self.ms:.3f}"),
        ]
        if self.against is not None:
            rows += [
                ("ms, the other network", f"{self.against.ms:.3f}"),
                ("same top class", f"{self.against.agreement:.2f} %"),
                ("largest difference of an output", f"{self.against.largest_difference:.4g}"),
                ("signal over difference, dB", f"{self.against.sqnr:.1f}"),
            ]
        notes = (self.advice,) if self.advice else ()
        return Table(("whole network", "value"), rows, notes=notes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, what `ternary-ops report --json` prints."""
        totals = {f: self.total(f) for f in ("weights", "macs", "fp32", "packed", "bound")}
        return {
            "sample": list(self.sample),
            "file_bytes": self.file,
            "totals": totals,
            "compressors": self.compressors,
            "zero_quads_percent": self.zeros("quads"),
            "zero_weights_percent": self.zeros("weights"),
            "ms": self.ms,
            "against": None if self.against is None else self.against.__dict__,
            "advice": self.advice,
            "layers": [row.__dict__ for row in self.layers],
        }

    def to_csv(self, path: str | Path) -> None:
        """One row per layer."""
        write_csv(path, [row.to_row() for row in self.layers])

    def plot(self, path: str | Path) -> None:
        """Save a chart: bytes of the whole in the four forms, and zeros and time by layer.

        Raises MissingExtra without matplotlib.
        """
        figure, (sizes, zeros, times) = new_figure(3)
        forms = ("fp32", "packed", "file", "bound")
        values = [self.total("fp32"), self.total("packed"), self.file, self.total("bound")]
        bars(sizes, forms, [v / 1000 for v in values], "kB, all layers", log=True)
        names = [row.name for row in self.layers]
        empty = [100 * row.empty_quads / row.quads for row in self.layers]
        bars(zeros, names, empty, "empty quads, %", horizontal=True)
        bars(times, names, [row.ms for row in self.layers], "ms", horizontal=True)
        save_figure(figure, path)

    def _bytes(self, kind: str | None) -> tuple[str, str, str]:
        fp32, packed = (f"{int(self.total(f, kind)):,}" for f in ("fp32", "packed"))
        return fp32, packed, f"{self.total('bound', kind):,.0f}"


def report(
    model: nn.Module | Program,
    sample: Tensor | Array,
    against: nn.Module | Program | None = None,
    *,
    allow_unfinished: bool = False,
) -> Report:
    """Figures of `model` on `sample`, and of `against` on the same.

    model: a Program, or a network that `compile` takes, which allow_unfinished is passed to.
    sample: float32 [N, C, H, W] or [N, K]; its multiply-adds and time are of the whole batch.
    Where the outputs of a quantized network have less than 20 dB beside `against`, the report names
    layers to fall back on (`quantize.fallback_`), as far as the rounding of activations is at
    fault, and where the program rounds more than that network in torch (`compiler.rounding`).
    Raises what compile and a Program raise.

    >>> report = tops.report(tops.compile(model, x), x, against=model)
    >>> report.against.agreement, report.sample
    (100.0, (2, 1, 8, 8))
    """
    x = _array(sample)
    program = _program(model, sample, allow_unfinished)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.safetensors")
        program.save(path)
        size = path.stat().st_size
    made = of_program(program, x, size, None if against is None else _runner(against))
    if made.against is None or made.against.sqnr >= _ENOUGH:
        return made
    from ternary_ops.quantize.fallback import advice

    return replace(made, advice=advice(model, sample, _ENOUGH))


def of_program(
    program: Program, x: Array, file: int, other: Callable[[Array], Array] | None = None
) -> Report:
    """Report of a program whose file has `file` bytes; needs no torch."""
    against = None
    ours = partial(program, x)
    if other is not None:
        theirs = partial(other, x)
        times = _times(ours, theirs)
        against = _compare(ours(), theirs(), times[1])
    else:
        times = _times(ours)
    banks = program.graph.weights
    compressors = general_compressors(
        ((w.kind, w.array) for w in banks),
        (v for w in banks for v in (w.scale, w.bias) if v is not None),
    )
    return Report(tuple(layers_of(program, x)), x.shape, file, times[0], compressors, against)


def _compare(ours: Array, theirs: Array, ms: float) -> Comparison:
    if ours.shape != theirs.shape:
        what = f"{list(ours.shape)} from both networks"
        raise UnsupportedShape(need(what, list(theirs.shape), "Compare networks of one task."))
    same = ours.argmax(1) == theirs.argmax(1) if ours.shape[0] else np.ones(1)
    difference = ours.astype(np.float64) - theirs
    noise, signal = (float(np.square(v, dtype=np.float64).sum()) for v in (difference, theirs))
    sqnr = math.inf if noise == 0 else -math.inf
    if noise and signal:
        sqnr = 10 * math.log10(signal / noise)
    return Comparison(ms, 100 * float(same.mean()), float(np.abs(difference).max(initial=0)), sqnr)


def _times(*calls: Callable[[], object]) -> list[float]:
    """Median milliseconds of each call, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(REPEATS + 2):
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if repeat >= 2:  # the first calls plan memory and warm caches
                kept.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(kept) for kept in times]


def _array(sample: Tensor | Array) -> Array:
    if not isinstance(sample, np.ndarray):
        if not hasattr(sample, "detach"):
            what, do = "as sample a tensor or a NumPy array", "Pass a batch that the model takes."
            raise UnsupportedShape(need(what, type(sample).__name__, do))
        sample = sample.detach().cpu().numpy()
    return np.ascontiguousarray(sample, np.float32)


def _program(model: nn.Module | Program, sample: Tensor | Array, allow: bool) -> Program:
    from ternary_ops.runtime import Program

    if isinstance(model, Program):
        return model
    import torch

    from ternary_ops.compiler import compile as compile_model

    if not isinstance(model, torch.nn.Module):
        what = "a network or a Program to report"
        raise UnsupportedModel(need(what, type(model).__name__, "Compile or load it first."))
    return compile_model(model, torch.as_tensor(sample), allow_unfinished=allow)


def _runner(model: nn.Module | Program) -> Callable[[Array], Array]:
    from ternary_ops.runtime import Program

    if isinstance(model, Program):
        return model
    import torch

    from ternary_ops.graph.signature import pick, signature_of
    from ternary_ops.graph.wrappers import unwrap

    network = unwrap(model).eval()
    signature = signature_of(network)

    def call(x: Array) -> Array:
        with torch.inference_mode():
            y: Array = pick(signature.call(network, torch.from_numpy(x))).numpy()
        return y

    return call

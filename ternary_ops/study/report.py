# SPDX-License-Identifier: Apache-2.0
"""An outcome as one table, as JSON and as a chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ternary_ops.charts import bars, new_figure, save_figure
from ternary_ops.study.compressing import Outcome
from ternary_ops.table import Table

ENGINES = ("torch fp32", "torch int8", "ternary-ops")


def table(outcome: Outcome) -> Table:
    """Accuracy, parameters, zeros, bytes and milliseconds side by side."""
    report, none = outcome.report, "-"
    int8 = outcome.accuracy_int8
    rows: list[tuple[str, ...]] = [
        (
            f"accuracy, {outcome.test_images} test images",
            f"{outcome.accuracy_dense:.2f} %",
            none if int8 is None else f"{int8:.2f} %",
            f"{outcome.accuracy:.2f} %",
        ),
        ("parameters", f"{outcome.parameters:,}", f"{outcome.parameters:,}", _kept(outcome)),
        ("empty quads, pruned layers", none, none, f"{report.zeros('quads'):.2f} %"),
        ("zero weights, pruned layers", none, none, f"{report.zeros('weights'):.2f} %"),
        ("bytes, fp32", f"{outcome.fp32_bytes:,}", none, none),
        ("bytes, 2 or 8 bits a weight", none, none, f"{int(report.total('packed')):,}"),
        ("bytes, this file", none, none, f"{report.file:,}"),
        ("bytes, entropy bound", none, none, f"{report.total('bound'):,.0f}"),
    ]
    for speed in outcome.speeds:
        label = f"ms an image, {_threads(speed.threads)}, {_images(speed.batch)}"
        cells = (f"{speed.ms[e]:.4f}" if e in speed.ms else none for e in ENGINES)
        rows.append((label, *cells))
    notes = [
        f"fp32 / packed = {outcome.fp32_bytes / report.total('packed'):.1f}, "
        f"fp32 / file = {outcome.fp32_bytes / report.file:.1f}; every tensor and header counted",
        "entropy bound: of single values, and 4 bytes a scale and bias, which the file shortens",
        "the file, run in a process without torch, gives the bits of this process and of NumPy",
        f"same class as the trained network in PyTorch: {outcome.agreement:.2f} % of test images",
        f"torch int8: {_int8_note(outcome)}",
        *outcome.notes,
        *(f"warning: {text}" for text in outcome.warnings),
    ]
    columns = (outcome.name, "torch fp32", "torch int8", "ternary-ops")
    return Table(columns, rows, notes=notes)


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "name": outcome.name,
        "file": str(outcome.file),
        "accuracy": {
            "dense": outcome.accuracy_dense,
            "int8": outcome.accuracy_int8,
            "ternary": outcome.accuracy,
            "drop": outcome.drop,
            "agreement": outcome.agreement,
        },
        "parameters": outcome.parameters,
        "fp32_bytes": outcome.fp32_bytes,
        "ms_per_image": [speed.__dict__ for speed in outcome.speeds],
        "int8": _int8_note(outcome),
        "notes": list(outcome.notes),
        "warnings": list(outcome.warnings),
        "report": outcome.report.to_dict(),
    }


def chart(outcome: Outcome, path: str | Path) -> None:
    """Bytes, accuracy and time of one image in three panels."""
    figure, (sizes, right, times) = new_figure(3)
    report = outcome.report
    kilobytes = [
        v / 1000
        for v in (outcome.fp32_bytes, report.total("packed"), report.file, report.total("bound"))
    ]
    bars(sizes, ("fp32", "packed", "file", "bound"), kilobytes, "kB, every tensor", log=True)
    scores = {"fp32": outcome.accuracy_dense, "ternary": outcome.accuracy}
    if outcome.accuracy_int8 is not None:
        scores = {"fp32": scores["fp32"], "int8": outcome.accuracy_int8, **scores}
    bars(right, list(scores), list(scores.values()), f"% right of {outcome.test_images}")
    one = next(s for s in outcome.speeds if s.threads == 1 and s.batch == 1)
    bars(times, list(one.ms), [1000 * v for v in one.ms.values()], "us an image, 1 thread")
    figure.suptitle(outcome.name)
    save_figure(figure, path)


def _kept(outcome: Outcome) -> str:
    weights, zeros = outcome.report.total("weights"), outcome.report.total("zeros")
    return f"{int(weights - zeros):,} not 0"


def _int8_note(outcome: Outcome) -> str:
    made = outcome.accuracy_int8 is not None
    return f"static, engine {outcome.int8_note}" if made else f"not available ({outcome.int8_note})"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _images(count: int) -> str:
    return "one at a time" if count == 1 else f"{count} at once"

# SPDX-License-Identifier: Apache-2.0
"""Bar charts of reports and benchmarks, off screen; matplotlib is imported at first use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ternary_ops._atomic import replace_file
from ternary_ops.errors import MissingExtra, need


def new_figure(columns: int) -> tuple[Any, Sequence[Any]]:
    """A matplotlib figure with `columns` axes side by side, off screen; raises MissingExtra."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        do = "pip install 'ternary-ops[train]'"
        raise MissingExtra(need("matplotlib for charts", "none installed", do)) from error
    figure = Figure(figsize=(4.2 * columns, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, 1 + i) for i in range(columns)]


def bars(
    axes: Any,
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    log: bool = False,
    horizontal: bool = False,
) -> None:
    """Bars with their values written beside them."""
    if horizontal:
        drawn = axes.barh(range(len(names)), values, color="#2a6f97")
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(label)
    else:
        drawn = axes.bar(range(len(names)), values, color="#2a6f97", log=log)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(label)
        axes.margins(y=0.15)
    axes.bar_label(drawn, fmt="{:,.4g}", fontsize=7, padding=2)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure, atomically; the suffix chooses PNG, SVG or PDF."""
    replace_file(path, lambda target: figure.savefig(target, dpi=150))

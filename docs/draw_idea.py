# SPDX-License-Identifier: Apache-2.0
"""Draws docs/idea.svg, the picture at the top of README.md: python docs/draw_idea.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

ROWS, QUADS = 8, 6
COLORS = {-1: "#b5443c", 0: "#ffffff", 1: "#2a6f97"}
INK, FAINT = "#30343b", "#c9ccd1"


def main() -> None:
    # Text as text, and no random ids: the same picture gives the same bytes.
    matplotlib.rcParams.update({"svg.hashsalt": "idea", "svg.fonttype": "none"})
    rng = np.random.default_rng(11)
    dense = rng.normal(size=(ROWS, 4 * QUADS))
    strength = np.abs(dense).reshape(ROWS, QUADS, 4).mean(2)
    kept = strength >= np.sort(strength.ravel())[-round(0.1 * ROWS * QUADS)]
    ternary = np.sign(dense) * (np.abs(dense) > 0.35) * np.repeat(kept, 4, axis=1)

    figure = Figure(figsize=(11.5, 3.1))
    axes = figure.add_axes((0.005, 0.0, 0.99, 1.0))
    axes.set_xlim(0, 115)
    axes.set_ylim(-4.2, 26.5)
    axes.set_aspect("equal")
    axes.axis("off")
    float_grid(axes, 2, dense)
    ternary_grid(axes, 42, ternary, kept)
    listed(axes, 86, ternary, kept)
    for start, label in ((31, "prune + ternarize\nwhile training"), (71, "keep the rest")):
        axes.add_patch(
            FancyArrowPatch((start, 12), (start + 9.5, 12), arrowstyle="-|>", mutation_scale=16)
        )
        axes.text(start + 4.5, 14, label, ha="center", va="bottom", fontsize=8.5, color=INK)
    captions = (
        (14, "float32 weights\n32 bits each"),
        (
            54,
            "90 % of the quads empty, the rest in {-1, 0, +1}\na quad: 4 input channels of one tap",
        ),
        (99, "what is stored and what is run:\none multiply-add lane a quad"),
    )
    for x, text in captions:
        axes.text(x, -0.8, text, ha="center", va="top", fontsize=8.5, color=INK)
    target = Path(__file__).with_name("idea.svg")
    figure.savefig(target, metadata={"Date": None})


def float_grid(axes: Axes, x: float, values: np.ndarray) -> None:
    shade = matplotlib.colormaps["RdBu"]
    for row in range(ROWS):
        for column in range(4 * QUADS):
            color = shade(0.5 + values[row, column] / 5)
            axes.add_patch(Rectangle((x + column, 24 - 3 * row - 2.6), 0.94, 2.5, fc=color))


def ternary_grid(axes: Axes, x: float, values: np.ndarray, kept: np.ndarray) -> None:
    for row in range(ROWS):
        for column in range(4 * QUADS):
            color = COLORS[int(values[row, column])]
            box = Rectangle((x + column, 24 - 3 * row - 2.6), 0.94, 2.5, fc=color, ec=FAINT, lw=0.3)
            axes.add_patch(box)
        for quad in range(QUADS):
            full = kept[row, quad]
            corner = (x + 4 * quad - 0.06, 24 - 3 * row - 2.7)
            style = {"ec": INK if full else FAINT, "lw": 1.2 if full else 0.5, "fill": False}
            axes.add_patch(Rectangle(corner, 4, 2.7, **style))


def listed(axes: Axes, x: float, values: np.ndarray, kept: np.ndarray) -> None:
    places = np.argwhere(kept)
    for index, (row, quad) in enumerate(places):
        y = 22.6 - index * (24 / max(len(places), 1))
        axes.text(
            x + 6.5,
            y,
            f"row {row}, channel {4 * quad}",
            fontsize=8,
            color=INK,
            va="center",
            ha="right",
        )
        for element in range(4):
            weight = int(values[row, 4 * quad + element])
            corner = (x + 8 + 3 * element, y - 1.1)
            axes.add_patch(Rectangle(corner, 2.8, 2.2, fc=COLORS[weight], ec=INK, lw=0.6))
            ink = "white" if weight else INK
            text = {-1: "-1", 0: "0", 1: "+1"}[weight]
            axes.text(corner[0] + 1.4, y, text, fontsize=7, color=ink, ha="center", va="center")
        axes.text(x + 20.5, y, "· 4 inputs", fontsize=8, color=INK, va="center")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What a search found: the network, and the line of best networks that it lies on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.charts import new_figure, save_figure
from ternary_ops.errors import BadConfig, need
from ternary_ops.prune.removal import Removal, remove_
from ternary_ops.quantize.convert import quantize_
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.table import Table

_SHOWN = 12  # points of the front in the table


@dataclass(frozen=True)
class FrontPoint:
    """A network of the least error for its cost, as the search predicts it.

    filters, units, int8: shares of channels that are left, of units that are empty, and of 8-bit
    layers among those that were chosen for, layers counting alike.
    """

    cost: float
    error: float
    filters: float
    units: float
    int8: float


@dataclass(frozen=True)
class Found:
    """A network within a budget, before training; print it, plot it, apply it.

    plan: of the narrower network. kept: by group, the channels that stay. unit: "ms" or "bytes".
    limit: what was asked for. cost: what the network takes, measured. own: the network as the
    search saw it. widths: of each group that gets narrower its name, its width before and after.
    front: the networks beside it, cheapest first. where: machine, instruction set and threads of a
    time.
    """

    plan: Plan
    kept: Mapping[str, Tensor]
    unit: str
    limit: float
    cost: float
    own: FrontPoint
    widths: tuple[tuple[str, int, int], ...]
    front: tuple[FrontPoint, ...]
    where: str
    example: Tensor

    def apply_(self, model: nn.Module) -> Removal | None:
        """Remove the channels and quantize the layers, in place; what was removed, if anything was.

        Make the optimizer after this, and a Pruner, which empties the units while the network
        trains. Raises, as remove_ and quantize_ do, for another network.
        """
        removed = remove_(model, self.example, self.kept, round_to=1) if self.kept else None
        quantize_(model, self.plan)
        return removed

    def __str__(self) -> str:
        """The front with the network in its place, then widths and plan."""
        parts = [str(self.front_table()), str(self.width_table()), str(self.plan)]
        return "\n\n".join(parts if self.widths else [parts[0], parts[2]])

    def front_table(self) -> Table:
        """Cost and error along the front; the row of this network is marked."""
        rows = [(p.cost, self._cells(p, "")) for p in _thinned(self.front)]
        mine = f"{self.limit:g} asked, measured"
        own = replace(self.own, cost=self.cost)
        rows = sorted([*rows, (self.cost, self._cells(own, mine))], key=lambda row: row[0])
        names = (self.unit, "error", "filters left", "units empty", "8-bit layers", "")
        notes = [
            "error: noise over signal of the output, before training, of each change alone, summed",
            *([f"ms of one call: {self.where}"] if self.unit == "ms" else []),
        ]
        return Table(names, [cells for _, cells in rows], notes=notes, words=("",))

    def width_table(self) -> Table:
        """Groups that get narrower."""
        rows = [(name, str(before), str(after)) for name, before, after in self.widths]
        return Table(("group", "before", "after"), rows)

    def plot(self, path: str | Path) -> None:
        """Draw the front, and this network on it; the suffix chooses PNG, SVG or PDF."""
        figure, panels = new_figure(1)
        axes = panels[0]
        costs, errors = [p.cost for p in self.front], [max(p.error, 1e-9) for p in self.front]
        axes.plot(costs, errors, "o-", markersize=3, color="#2a6f97", label="predicted")
        axes.plot(
            [self.cost],
            [max(self.own.error, 1e-9)],
            "D",
            color="#bc6c25",
            label="this network, measured",
        )
        axes.axvline(self.limit, color="gray", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"{self.unit}, {self.where}" if self.unit == "ms" else self.unit)
        axes.set_ylabel("error before training")
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        save_figure(figure, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **{"unit": self.unit, "limit": self.limit, "cost": self.cost, "where": self.where},
            **{"own": asdict(self.own), "widths": [list(row) for row in self.widths]},
            "plan": self.plan.to_dict(),
            "kept": {name: index.tolist() for name, index in self.kept.items()},
            "front": [asdict(point) for point in self.front],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], example: Tensor) -> Found:
        """The inverse of to_dict, for the example of the search."""
        try:
            return cls(
                **{name: values[name] for name in ("unit", "limit", "cost", "where")},
                own=FrontPoint(**values["own"]),
                plan=Plan.from_dict(values["plan"]),
                kept={name: torch.tensor(index) for name, index in values["kept"].items()},
                widths=tuple((str(n), int(a), int(b)) for n, a, b in values["widths"]),
                front=tuple(FrontPoint(**point) for point in values["front"]),
                example=example,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            do = "Pass what Found.to_dict() returned."
            raise BadConfig(need("a search's result as plain values", repr(error), do)) from error

    def _cells(self, point: FrontPoint, said: str) -> tuple[str, ...]:
        cost = f"{point.cost:.4g}" if self.unit == "ms" else f"{point.cost:,.0f}"
        shares = (f"{share:.0%}" for share in (point.filters, point.units, point.int8))
        return (cost, f"{point.error:.3g}", *shares, said)


def _thinned(front: tuple[FrontPoint, ...]) -> list[FrontPoint]:
    """Some of the points, the ends included."""
    if len(front) <= _SHOWN:
        return list(front)
    chosen = {round(k * (len(front) - 1) / (_SHOWN - 1)) for k in range(_SHOWN)}
    return [front[k] for k in sorted(chosen)]

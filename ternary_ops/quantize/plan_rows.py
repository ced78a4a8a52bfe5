# SPDX-License-Identifier: Apache-2.0
"""A plan as data: one row a layer, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.engine_cost import EngineCost
from ternary_ops.table import Table

_COLUMNS = ("name", "type", "shape", "action", "pattern", "reason")


@dataclass(frozen=True)
class PlanRow:
    """One weighted layer. `action`: "ternary", "int8", "float" (by config), "skip" (see reason)."""

    name: str
    type: str
    shape: tuple[int, ...]
    action: str
    pattern: str  # "" unless ternary, or 8 bits with zeros
    reason: str
    config: TernaryConfig | None  # what the layer gets; None unless ternary or int8
    cost: EngineCost | None = None  # measured, for scope "time"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        config = None if self.config is None else self.config.to_dict()
        cost = None if self.cost is None else self.cost.to_dict()
        return {**vars(self), "shape": list(self.shape), "config": config, "cost": cost}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlanRow:
        """The inverse of to_dict."""
        config, cost = values["config"], values.get("cost")  # plans of earlier versions have none
        parsed = {
            "config": None if config is None else TernaryConfig.from_dict(config),
            "cost": None if cost is None else EngineCost.from_dict(cost),
        }
        return cls(**{**values, "shape": tuple(values["shape"]), **parsed})


@dataclass(frozen=True)
class Plan:
    """One row per weighted layer, in the order of named_modules(). str() is a table."""

    rows: tuple[PlanRow, ...]

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> PlanRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        costs = [row.cost for row in self.rows if row.cost is not None]
        columns = (*_COLUMNS[:-1], *(["saves"] if costs else []), _COLUMNS[-1])
        cells = []
        for row in self.rows:
            shape, pattern = "x".join(map(str, row.shape)), row.pattern or "-"
            saves = [] if not costs else ["-" if row.cost is None else f"{row.cost.ms:.3g} ms"]
            cells.append((row.name, row.type, shape, row.action, pattern, *saves, row.reason))
        notes = [f"saves: a call, were the layer empty; {where}" for where in _places(costs)]
        return str(Table(columns, cells, notes=notes, words=_COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"rows": [row.to_dict() for row in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of to_dict."""
        try:
            return cls(tuple(PlanRow.from_dict(row) for row in values["rows"]))
        except (KeyError, TypeError, AttributeError) as error:
            do = "Pass what Plan.to_dict() returned."
            raise BadConfig(need("a plan as plain values", repr(error), do)) from error


def _places(costs: list[EngineCost]) -> list[str]:
    return list(dict.fromkeys(cost.where for cost in costs))


def weight_shape(module: nn.Module | None) -> tuple[int, ...]:
    """The shape of module.weight; () where there is none, or none yet."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight):
        return tuple(weight.shape)
    return ()

# SPDX-License-Identifier: Apache-2.0
"""EngineCost: what a layer's empty units save in the engine, as plain data that a plan carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ternary_ops.errors import BadConfig, need


@dataclass(frozen=True)
class EngineCost:
    """One layer's measured cost, for scope "time".

    ms                     what a call saves when all units of the layer become empty
    machine, isa, threads  where that was measured: processor, instruction set, threads
    """

    ms: float
    machine: str
    isa: str
    threads: int

    def __post_init__(self) -> None:
        """Raises BadConfig unless ms is a positive number and the rest says where."""
        number = type(self.ms) is float and math.isfinite(self.ms) and self.ms > 0
        where = type(self.machine) is str and type(self.isa) is str and type(self.threads) is int
        if not (number and where):
            what = "a cost of ms > 0, and the machine, isa and threads where it was measured"
            raise BadConfig(need(what, self, "Pass what plan(model, config, example=x) measured."))

    @property
    def where(self) -> str:
        """Processor, instruction set and threads in words."""
        return f"{self.machine}, {self.isa}, {self.threads} thread{'s' * (self.threads != 1)}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineCost:
        """The inverse of to_dict; BadConfig for anything else."""
        names = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            what = f"a cost of {', '.join(sorted(names))}"
            raise BadConfig(need(what, f"{values!r:.80}", "Pass what to_dict returned."))
        return cls(**values)

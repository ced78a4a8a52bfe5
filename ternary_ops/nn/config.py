# SPDX-License-Identifier: Apache-2.0
"""TernaryConfig: how one layer is quantized. Imports no layer, so that layers can import it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ternary_ops.errors import BadConfig, check_type, need
from ternary_ops.nn.patterns import get_pattern
from ternary_ops.nn.ternarize import get_ternarizer

WEIGHTS = ("ternary", "int8", "float")
SCOPES = ["global", "layer"]  # prune.register_allocation adds to them
ACTIVATIONS = ("uint8", "uint11", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TernaryConfig:
    """Quantization of a layer's weights and input. Raises BadConfig on a value out of range.

    weights      "ternary", "int8" (one scale per output channel) or "float" (left as it is)
    ternarizer   a name known to register_ternarizer: "ptq", "twn", "ttq", "absmean" or your own
    zeros        fraction of units a Pruner empties, 0 <= zeros < 1; None means 0.9 for ternary
                 weights and 0, dense, for 8-bit ones; with an N:M pattern 1 - N/M
    pattern      unit of pruning: "1x4" (quads), "element", "NxM", "filter"; "2:4", "1x4@1:4" (N:M
                 of elements or blocks), "strided:S": nn.patterns
    scope        how zeros are spread: "global", counted over all layers of equal pattern and zeros;
                 "time", likewise, by what they save in the engine, as plan(example=) measured it;
                 "layer", each alone; or another name of prune.ALLOCATIONS
    activations  "uint8": the input is quantized to its `input_range`; "uint11": two-term (residual)
                 11-bit quantization, in steps an eighth as large at twice the work, for layers most
                 sensitive to rounding (int8 weights, a convolution without groups); a float type:
                 weight-only
    """

    weights: str = "ternary"
    ternarizer: str = "ptq"
    zeros: float = None  # type: ignore[assignment]  # a number once made
    pattern: str = "1x4"
    scope: str = "global"
    activations: str = "uint8"

    def __post_init__(self) -> None:
        _choice("weights", self.weights, WEIGHTS)
        _choice("scope", self.scope, SCOPES)
        _choice("activations", self.activations, ACTIVATIONS)
        pattern = get_pattern(self.pattern)
        get_ternarizer(self.ternarizer)
        if self.zeros is None:
            usual = 0.9 if self.weights == "ternary" else 0.0
            object.__setattr__(self, "zeros", pattern.least_zeros or usual)
        if self.activations == "uint11" and self.weights != "int8":
            do = 'Set weights="int8", or activations="uint8".'
            raise BadConfig(need('weights "int8" beside activations "uint11"', self.weights, do))
        number = isinstance(self.zeros, (int, float)) and not isinstance(self.zeros, bool)
        if not (number and 0.0 <= self.zeros < 1.0):
            raise BadConfig(
                need(
                    "TernaryConfig.zeros as a fraction 0 <= zeros < 1",
                    repr(self.zeros),
                    "0.9 keeps one unit in ten.",
                )
            )

    @property
    def integer_input(self) -> bool:
        """True if the input is quantized, so that accumulation is in integers."""
        return self.activations in ("uint8", "uint11")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TernaryConfig:
        """The inverse of to_dict; BadConfig on an unknown field."""
        check_type(
            "a TernaryConfig as plain values", values, Mapping, "Pass what to_dict returned."
        )
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise BadConfig(
                need(
                    f"fields of TernaryConfig ({', '.join(known)})",
                    unknown[0],
                    "Remove or rename it.",
                )
            )
        return cls(**values)


def _choice(field: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        names = ", ".join(repr(a) for a in allowed)
        raise BadConfig(need(f"TernaryConfig.{field} as one of {names}", repr(value), "Pick one."))

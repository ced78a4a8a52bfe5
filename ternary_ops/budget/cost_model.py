# SPDX-License-Identifier: Apache-2.0
"""Costs of layers at any width and share of empty quads, from a few networks that were measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ternary_ops.budget.width_features import Features, LayerWidths, MeanWidths, Widths

# A layer's costs by kind of weights: pairs of a share of empty units and a cost.
Curves: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
# Which of a layer's four features (`LayerWidths.features`) may have a part, the simplest first.
_SUBSETS = sorted(
    (s for n in range(1, 5) for s in itertools.combinations(range(4), n)),
    key=lambda s: (len(s), 3 not in s),
)
_TIE = 1e-3  # of a relative residual: simpler parts go first


@dataclass(frozen=True)
class Measured:
    """One network, measured: costs of its layers, and of everything else together."""

    layers: Mapping[str, Curves]
    rest: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"layers": self.layers, "rest": self.rest}


@dataclass(frozen=True)
class CostModel:
    """Costs in the unit of a budget.

    parts: by layer and kind, shares of empty units [n] and, for each, what the layer's features are
    multiplied with, [n, 4]. rest: of everything else, what 1 and the share of activations that is
    left are multiplied with. factors: by which layers really cost more, found by measuring.
    """

    parts: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]
    rest: NDArray[np.float64]
    sizes: LayerWidths
    factors: Mapping[str, float] = field(default_factory=dict)
    rest_factor: float = 1.0

    def at(self, layer: str, kind: str, zeros: float) -> NDArray[np.float64]:
        """What a layer's features are multiplied with, [4]."""
        shares, parts = self.parts[layer][kind]
        found = np.array([np.interp(zeros, shares, parts[:, k]) for k in range(4)])
        return found * self.factors.get(layer, 1.0)

    def layer(self, layer: str, kind: str, zeros: float, widths: MeanWidths) -> float:
        """The cost of a layer."""
        return float(self.at(layer, kind, zeros) @ self.sizes.features(layer, widths))

    def others(self, widths: MeanWidths) -> float:
        """The cost of everything else."""
        left = np.array([1.0, self.sizes.traffic(widths)])
        return float(self.rest @ left) * self.rest_factor

    def corrected(
        self,
        layers: Mapping[str, float],
        rest: float,
        at: Mapping[str, tuple[str, float]],
        w: Widths,
    ) -> CostModel:
        """A model that gives these costs for layers of such kinds and shares at widths w."""
        factors = dict(self.factors)
        for name, cost in layers.items():
            factors[name] = self.factors.get(name, 1.0) * _ratio(
                cost, self.layer(name, *at[name], w)
            )
        rest_factor = self.rest_factor * _ratio(rest, self.others(w))
        return replace(self, factors=factors, rest_factor=rest_factor)


def fit(measured: Sequence[tuple[Widths, Measured]], sizes: LayerWidths) -> CostModel:
    """A model of networks that were measured at several widths, the first of them whole."""
    first = measured[0][1]
    parts: dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for name, curves in first.layers.items():
        features = np.stack([sizes.features(name, widths) for widths, _ in measured])
        parts[name] = {}
        for kind, curve in curves.items():
            shares = np.array([share for share, _ in curve])
            costs = np.array([[c for _, c in m.layers[name][kind]] for _, m in measured])
            rows = [_fitted(features, costs[:, k]) for k in range(len(shares))]
            parts[name][kind] = shares, np.stack(rows)
    left = np.array([[1.0, sizes.traffic(widths)] for widths, _ in measured])
    rest = _fitted(np.pad(left, ((0, 0), (0, 2))), np.array([m.rest for _, m in measured]))
    return CostModel(parts, rest[:2], sizes)


def _fitted(features: Features, costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-negative parts [4] of least relative error; of equal ones, the simplest."""
    scale = 1 / np.maximum(costs, 1e-3 * max(float(costs.max()), 1e-12))
    best, least = np.zeros(4), np.inf
    for subset in _SUBSETS:
        columns = features[:, subset] * scale[:, None]
        if np.linalg.matrix_rank(columns) < len(subset):
            continue
        found = np.linalg.lstsq(columns, costs * scale, rcond=None)[0]
        off = float(np.sqrt(np.mean((columns @ found - costs * scale) ** 2)))
        if (found >= 0).all() and off < least - _TIE:
            best, least = np.zeros(4), off
            best[list(subset)] = found
    return best


def _ratio(found: float, expected: float) -> float:
    """How many times as large, within bounds that keep one bad moment from ruling out a layer."""
    return float(np.clip(found / expected, 0.2, 5.0)) if expected > 0 else 1.0

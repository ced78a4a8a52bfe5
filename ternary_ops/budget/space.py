# SPDX-License-Identifier: Apache-2.0
"""The networks that a search chooses from, and the choice: widths, empty units and kinds of
weights, for the least error within a limit.

A price on cost, raised step by step, gives a path of networks: each group's width, then each
layer's weights, are those of the least error plus price times cost, in turns until nothing changes.
Widths of the path are candidates; with them fixed, `choose` spends the limit on layers to the last
step that fits, and widths that are a step away are tried as long as that helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ternary_ops.budget.choice import Choice, choose
from ternary_ops.budget.cost_model import CostModel
from ternary_ops.budget.width_features import Widths
from ternary_ops.nn.config import TernaryConfig

_PRICES, _DECADES = 61, 6  # of the path, and how far above and below the mean error per cost
_SWEEPS = 8  # of groups and layers in turns, at most
_CLIMBS = 12  # rounds of trying widths that are a step away


@dataclass(frozen=True)
class LayerOptions:
    """What a layer may be, and the error of each. shares: of empty units, as its cost goes by."""

    name: str
    configs: Sequence[TernaryConfig]
    shares: Sequence[float]
    errors: NDArray[np.float64]


@dataclass(frozen=True)
class GroupOptions:
    """Widths of a group, the whole first, and the error of each."""

    name: str
    widths: Sequence[int]
    errors: Sequence[float]


@dataclass(frozen=True)
class Design:
    """One network: widths of groups, a choice for each layer, its cost and error."""

    widths: Mapping[str, int]
    choices: Mapping[str, Choice]
    cost: float
    error: float


class Space:
    """All of them, by one model of costs."""

    def __init__(
        self, layers: Sequence[LayerOptions], groups: Sequence[GroupOptions], costs: CostModel
    ) -> None:
        self.layers = {layer.name: layer for layer in layers}
        self.groups = {group.name: group for group in groups}
        self.costs = costs
        self._parts = {
            layer.name: np.stack(
                [
                    costs.at(layer.name, config.weights, share)
                    for config, share in zip(layer.configs, layer.shares, strict=True)
                ]
            )
            for layer in layers
        }
        self._readers = {
            name: [n for n in costs.sizes.layers(name) if n in self.layers] for name in self.groups
        }

    @property
    def whole(self) -> dict[str, int]:
        """Every group as it is."""
        return {group.name: group.widths[0] for group in self.groups.values()}

    def least(self) -> float:
        """The cost of the cheapest network."""
        narrow = {group.name: group.widths[-1] for group in self.groups.values()}
        return self.costs.others(narrow) + sum(
            float(self._costs(name, narrow).min()) for name in self.layers
        )

    def best(self, limit: float) -> Design | None:
        """The network of the least error within the limit; None where none fits."""
        known: dict[tuple[int, ...], Design | None] = {}

        def at(levels: tuple[int, ...]) -> Design | None:
            if levels not in known:
                known[levels] = self._spent(self._widths(levels), limit)
            return known[levels]

        for design in self.path():
            at(self._levels(design.widths))
        at(tuple(len(group.widths) - 1 for group in self.groups.values()))
        found = [(design.error, levels) for levels, design in known.items() if design is not None]
        if not found:
            return None
        error, levels = min(found)
        for _ in range(_CLIMBS):
            start = levels
            for near in self._near(levels):
                tried = at(near)
                if tried is not None and tried.error < error:
                    error, levels = tried.error, near
            if levels == start:
                break
        return at(levels)

    def path(self) -> list[Design]:
        """Networks from the least error to the least cost."""
        whole = self.whole
        most = max(sum(float(layer.errors.max()) for layer in self.layers.values()), 1e-12)
        cost = max(
            self.costs.others(whole)
            + sum(float(self._costs(name, whole).max()) for name in self.layers),
            1e-12,
        )
        widths, found = whole, []
        for price in np.logspace(-_DECADES, _DECADES, _PRICES) * most / cost:
            widths = self._settled(widths, float(price))
            picks = {n: int(np.argmin(self._prices(n, widths, float(price)))) for n in self.layers}
            found.append(self._design(widths, picks))
        return found

    def _settled(self, widths: dict[str, int], price: float) -> dict[str, int]:
        """Widths of the least error plus price times cost, from these on."""
        widths = dict(widths)
        for _ in range(_SWEEPS):
            before = dict(widths)
            for name, group in self.groups.items():
                totals = []
                for width, error in zip(group.widths, group.errors, strict=True):
                    tried = {**widths, name: width}
                    layers = sum(self._prices(n, tried, price).min() for n in self._readers[name])
                    totals.append(error + layers + price * self.costs.others(tried))
                widths[name] = group.widths[int(np.argmin(totals))]
            if widths == before:
                break
        return widths

    def _costs(self, name: str, widths: Widths) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self._parts[name] @ self.costs.sizes.features(name, widths)
        return found

    def _prices(self, name: str, widths: Widths, price: float) -> NDArray[np.float64]:
        return self.layers[name].errors + price * self._costs(name, widths)

    def _design(self, widths: Mapping[str, int], picks: Mapping[str, int]) -> Design:
        choices = {
            name: Choice(
                self.layers[name].configs[k],
                float(self._costs(name, widths)[k]),
                float(self.layers[name].errors[k]),
            )
            for name, k in picks.items()
        }
        return self._of(widths, choices)

    def _of(self, widths: Mapping[str, int], choices: Mapping[str, Choice]) -> Design:
        cost = self.costs.others(widths) + sum(choice.cost for choice in choices.values())
        error = self._error(widths) + sum(choice.error for choice in choices.values())
        return Design(dict(widths), dict(choices), cost, error)

    def _error(self, widths: Mapping[str, int]) -> float:
        """Of the widths alone."""
        return sum(
            group.errors[group.widths.index(widths[group.name])] for group in self.groups.values()
        )

    def _spent(self, widths: dict[str, int], limit: float) -> Design | None:
        """The limit spent on layers at these widths."""
        table = {
            name: [
                Choice(config, float(cost), float(error))
                for config, cost, error in zip(
                    layer.configs, self._costs(name, widths), layer.errors, strict=True
                )
            ]
            for name, layer in self.layers.items()
        }
        chosen = choose(table, limit - self.costs.others(widths))
        return None if chosen is None else self._of(widths, chosen)

    def _levels(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(group.widths.index(widths[group.name]) for group in self.groups.values())

    def _widths(self, levels: Sequence[int]) -> dict[str, int]:
        pairs = zip(self.groups.values(), levels, strict=True)
        return {group.name: group.widths[level] for group, level in pairs}

    def _near(self, levels: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Widths of one group a step narrower or wider."""
        found = []
        for place, group in enumerate(self.groups.values()):
            for level in (levels[place] - 1, levels[place] + 1):
                if 0 <= level < len(group.widths):
                    found.append((*levels[:place], level, *levels[place + 1 :]))
        return found

# SPDX-License-Identifier: Apache-2.0
"""Programs whose layers have any share of empty quads, to predict bytes and times from: codes are
random, since only the number of quads that are left matters. NumPy only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ternary_ops.layout.codes import quads
from ternary_ops.program.graph import Graph
from ternary_ops.program.weight import Weight

# Of random 8-bit codes: a normal distribution as far as 127, which few weights of a filter reach.
_SPREAD = 36.0


class Emptied:
    """A graph with random codes in some layers, at any share of empty quads.

    names: of layers that get them; None: those that are ternary.
    """

    def __init__(self, graph: Graph, names: Collection[str] | None = None) -> None:
        self._graph = graph
        rng = np.random.default_rng(0)
        self._random = {
            i: _Codes(w, rng)
            for i, w in enumerate(graph.weights)
            if (w.kind == "ternary" if names is None else w.kind != "float" and w.name in names)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The layers whose codes are random."""
        return tuple(self._graph.weights[i].name for i in self._random)

    def at(self, share: float, kind: str = "ternary") -> Graph:
        """The graph with that share of empty quads, to one quad in each of these layers."""
        return self.chosen(dict.fromkeys(self.names, (kind, share)))

    def chosen(self, choices: Mapping[str, tuple[str, float]]) -> Graph:
        """The graph with a kind of weights and a share of empty quads for each of these layers."""
        weights = [
            self._random[i].weight(w, *choices[w.name]) if i in self._random else w
            for i, w in enumerate(self._graph.weights)
        ]
        return Graph(self._graph.nodes, tuple(weights))


class _Codes:
    """Random codes of one layer, no quad empty, and the order in which quads become so."""

    def __init__(self, weight: Weight, rng: np.random.Generator) -> None:
        channels = weight.shape[3]
        shape = (*weight.shape[:3], 4 * quads(channels))
        eight = np.clip(np.rint(rng.normal(0, _SPREAD, shape)), -127, 127).astype(np.int8)
        self._codes = {"ternary": rng.integers(-1, 2, shape, np.int8), "int8": eight}
        for codes in self._codes.values():
            codes[..., channels:] = 0
            lanes = codes.reshape(-1, 4)
            lanes[~lanes.any(1), 0] = 1
        self._order = rng.permutation(eight.size // 4)

    def weight(self, like: Weight, kind: str, share: float) -> Weight:
        """The layer with that share of its quads empty, to one quad."""
        codes: NDArray[np.int8] = self._codes[kind].copy()
        codes.reshape(-1, 4)[self._order[: round(share * len(self._order))]] = 0
        return replace(like, kind=kind, values=codes[..., : like.shape[3]])

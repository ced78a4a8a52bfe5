# SPDX-License-Identifier: Apache-2.0
"""Runs of bench/semi.py: rows that are kept, early stopping, and differences between seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from _measure import RESULTS, read_rows, write_csv

from ternary_ops.sr import SRNetwork
from ternary_ops.train.checkpoint import Stateful
from ternary_ops.train.loop import Hook, TrainLoop

Key = tuple[int, int, str]  # pairs, seed, method


class Best(Hook):
    """Early stopping: training ends with the weights of the step with the least error."""

    def __init__(
        self, generator: SRNetwork, error: Callable[[SRNetwork], float], every: int
    ) -> None:
        self.generator, self.error, self.every = generator, error, every
        self.step, self.least = 0, float("inf")
        self.weights = copy.deepcopy(generator.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"step": self.step, "least": self.least, "weights": self.weights}

    def load_state_dict(self, state: Any) -> None:
        """The inverse."""
        self.step, self.least, self.weights = state["step"], state["least"], state["weights"]

    def parts(self) -> Mapping[str, Stateful]:
        """Itself."""
        return {"best": self}

    def after_step(self, loop: TrainLoop) -> None:
        """Look at the error now and then."""
        if (loop.done + 1) % self.every:
            return
        self.generator.eval()
        error = self.error(self.generator)
        self.generator.train()
        if error < self.least:
            self.least, self.step = error, loop.done + 1
            self.weights = copy.deepcopy(self.generator.state_dict())

    def on_end(self, loop: TrainLoop) -> None:
        """Back to the best."""
        self.generator.load_state_dict(self.weights)


class Table:
    """Rows of a CSV file, one a run; runs that are there are not repeated."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[Key, dict[str, Any]] = {}
        for row in read_rows(RESULTS / name):
            self.rows[int(row["pairs"]), int(row["seed"]), row["method"]] = dict(row)

    def add(self, key: Key, values: Mapping[str, object]) -> None:
        """Keep a row, in the file too."""
        head = dict(zip(("pairs", "seed", "method"), key, strict=True))
        self.rows[key] = {**head, **{name: _rounded(value) for name, value in values.items()}}
        write_csv(self.name, list(self.rows.values()))

    def values(self, pairs: int, method: str, column: str) -> dict[int, float]:
        """By seed."""
        return {
            seed: float(row[column])
            for (count, seed, name), row in self.rows.items()
            if (count, name) == (pairs, method)
        }


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def interval(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float]:
    """Mean difference over the seeds that both have, and half of its 95 % interval (Student's t);
    infinite for a single seed.
    """
    from scipy.stats import t

    seeds: Sequence[int] = sorted(ours.keys() & theirs.keys())
    off = np.array([ours[s] - theirs[s] for s in seeds])
    if len(off) < 2:
        return float(off.mean()), float("inf")
    half = t.ppf(0.975, len(off) - 1) * off.std(ddof=1) / np.sqrt(len(off))
    return float(off.mean()), float(half)

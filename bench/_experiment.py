# SPDX-License-Identifier: Apache-2.0
"""Named trainings whose results are rows of a table: of bench/accuracy.py and bench/sr_train.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from _measure import RESULTS, read_rows, write_csv

import ternary_ops as tops

Training = TypeVar("Training")


@dataclass(frozen=True)
class Experiment(Generic[Training]):
    """One training: where its weights come from, what they become, and how they are trained.

    start: a published file, or another experiment; "" from scratch. config: of the quantized
    layers; None: all float.
    """

    name: str
    start: str
    config: tops.TernaryConfig | None
    course: Training


def keep_row(table: str, row: Mapping[str, object], order: Iterable[str]) -> None:
    """Add a row to a table, or replace the former one of the same run; in the order of names."""
    rows = [old for old in read_rows(RESULTS / table) if old["run"] != row["run"]]
    places = {name: number for number, name in enumerate(order)}
    write_csv(table, sorted([*rows, row], key=lambda r: places.get(str(r["run"]), len(places))))

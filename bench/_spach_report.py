# SPDX-License-Identifier: Apache-2.0
"""Results of bench/spach.py: means by arm, and verdicts on findings of the paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _measure import write_csv

Row = dict[str, Any]


def report(folder: Path) -> None:
    """Write the rows of a folder as a table, and print means and verdicts."""
    rows = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    flat = [{k: v for k, v in row.items() if k != "history"} | _last(row) for row in rows]
    print("written:", write_csv("spach.csv", flat))
    by_arm = {arm: _by_seed(rows, arm) for arm in dict.fromkeys(row["arm"] for row in rows)}
    for arm, seeds in by_arm.items():
        shown = [row["top1"] for row in seeds.values()]
        first = next(iter(seeds.values()))
        cost = f"{first['parameters']:9,} parameters {first['macs'] / 1e6:5.1f} MMAC"
        print(f"{arm:20} {len(shown)} seeds {mean(shown):6.2f} % +- {_spread(shown):.2f}  {cost}")
    for name, gaps in verdicts(by_arm).items():
        print(f"{name}: {_verdict(gaps)}")


def verdicts(by_arm: dict[str, dict[int, Row]]) -> dict[str, list[float]]:
    """Finding -> the gap of each seed, positive where the finding holds."""
    found = {}
    for kind in ("attention", "mlp"):
        pairs = _pairs(by_arm, kind, f"{kind}-no-bypass")
        name = f"the bypass helps {kind} (top-1 with less top-1 without)"
        found[name] = [a["top1"] - b["top1"] for a, b in pairs]
    found["token MLPs overfit more (gap of train and test less that of convolution)"] = [
        _gap_at(a, b) - _gap_at(b, a) for a, b in _pairs(by_arm, "mlp", "conv")
    ]
    found["convolution generalizes better than attention (top-1 at one training loss)"] = [
        _at_loss(a, b)["top1"] - _at_loss(b, a)["top1"]
        for a, b in _pairs(by_arm, "conv", "attention")
    ]
    return {name: gaps for name, gaps in found.items() if gaps}


def _by_seed(rows: Sequence[Row], arm: str) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if row["arm"] == arm}


def _pairs(by_arm: dict[str, dict[int, Row]], a: str, b: str) -> list[tuple[Row, Row]]:
    one, other = by_arm.get(a, {}), by_arm.get(b, {})
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]


def _at_loss(row: Row, other: Row) -> Row:
    """The first epoch of a row with the training loss that both runs reach."""
    reached = max(min(e["train_loss"] for e in r["history"]) for r in (row, other))
    return next(e for e in row["history"] if e["train_loss"] <= reached)


def _gap_at(row: Row, other: Row) -> float:
    """Training less test accuracy there. Training is measured on augmented images."""
    epoch = _at_loss(row, other)
    return float(epoch["train_top1"] - epoch["top1"])


def _last(row: Row) -> Row:
    return {name: row["history"][-1][name] for name in ("train_loss", "train_top1")}


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _verdict(gaps: Sequence[float]) -> str:
    """All seeds agree, or not; the effect in points and in standard deviations of the gap."""
    state = "holds" if min(gaps) > 0 else "fails" if max(gaps) < 0 else "open"
    size = mean(gaps) / _spread(gaps) if _spread(gaps) else float("nan")
    shown = " ".join(f"{gap:+.2f}" for gap in gaps)
    return f"{state}, {mean(gaps):+.2f} points, d = {size:.1f} ({shown})"

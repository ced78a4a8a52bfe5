# SPDX-License-Identifier: Apache-2.0
"""The rows of bench/zoo.py as a summary and as the page docs/models.md. Standard library only."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
PAGE, README = _ROOT / "docs" / "models.md", _ROOT / "README.md"
COLUMNS = (
    *("source", "name", "size", "mark", "parameters", "state", "error", "seconds", "bytes"),
    *("ms", "torch_ms", "int8_state", "int8_reference_error", "int8_fake_error", "int8_sqnr"),
    *("int8_fake_sqnr", "int8_ms", "int8_bytes", "int8_seconds", "islands_state"),
    *("islands_error", "islands_share", "islands_seconds", "total_seconds", "reason"),
    *("int8_reason", "islands_reason", "commit", "machine", "python", "command"),
)
_MARKS = {"-": "without attention", "a": "with attention"}
Row = Mapping[str, str]


def summary(rows: Sequence[Row]) -> str:
    """How many models are in which state, by mark, for each of the three ways to compile."""
    lines = []
    for prefix, title in (("", "float32"), ("int8_", "8 bits"), ("islands_", "islands, refused")):
        for mark, words in _MARKS.items():
            group = [row for row in rows if row["mark"] == mark and row[f"{prefix}state"]]
            if group:
                lines.append(f"{title}, {words}: {_counts(group, prefix)}")
        group = [row for row in rows if row[f"{prefix}state"]]
        if group:
            lines.append(f"{title}, all: {_counts(group, prefix)}")
    return "\n".join(lines)


def _counts(rows: Sequence[Row], prefix: str) -> str:
    states = Counter(row[f"{prefix}state"] for row in rows)
    ok = states.pop("ok", 0)
    rest = "".join(f", {count} {state}" for state, count in states.most_common())
    return f"{ok} of {len(rows)} ok{rest}"


def headline(rows: Sequence[Row]) -> str:
    """One sentence for the README."""
    plain = [row for row in rows if row["mark"] == "-"]
    ok, plain_ok = (sum(row["state"] == "ok" for row in group) for group in (rows, plain))
    return (
        f"{ok} of {len(rows)} networks of torchvision and timm, one a family, compile and agree "
        f"with torch to 1e-3 ({plain_ok} of the {len(plain)} without attention)"
    )


def with_headline(text: str, rows: Sequence[Row]) -> str:
    """The README with the sentence between its markers."""
    made = rf"\g<1>{headline(rows)}\g<2>"
    return re.sub("(<!-- zoo -->).*?(<!-- /zoo -->)", made, text, flags=re.DOTALL)


def page(rows: Sequence[Row]) -> str:
    """docs/models.md."""
    made = sorted({(row["commit"], row["machine"]) for row in rows if row["commit"]})
    about = "; ".join(f"commit {commit}, {machine}" for commit, machine in made)
    head = [
        "# Models",
        "",
        "Networks of torchvision and timm, one small variant a family, through `tops.compile`: "
        "`python bench/zoo.py`, which writes this page from `bench/results/zoo.csv`.",
        f"Weights are random, BatchNorm has seen two batches. {about}.",
        "",
        "```",
        summary(rows),
        "```",
        "",
        "*state*: ok (within 1e-3 of the largest output of torch), or why not. *islands*: a "
        "refused network run by `islands=True`, with the share of multiply-adds that is left to "
        "PyTorch. *8 bits*: all layers 8-bit, calibrated on eight images; dB is the SQNR of the "
        "outputs beside float. ms: one image on one thread, processor time. Empty: not measured.",
        "",
        "| model | side | state | islands | 8 bits, dB | ms | ms, 8 bits | ms, torch | why not |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(_line(row) for row in rows)]) + "\n"


def _line(row: Row) -> str:
    share = row["islands_share"]
    islands = row["islands_state"]
    if share:
        islands += f", {float(share):.0%}"
    state = row["int8_state"]
    eight = row["int8_sqnr"] if state == "ok" else state
    reason = "" if row["state"] == "ok" else _short(row["reason"])
    cells = (
        *(f"{row['source']} {row['name']}", row["size"], row["state"], islands, eight),
        *(row["ms"], row["int8_ms"], row["torch_ms"], reason),
    )
    return "| " + " | ".join(cells) + " |"


def _short(reason: str) -> str:
    """The first parts that are missing; what a table would read as its own signs is escaped."""
    text = reason.partition(" without: ")[2] or reason
    text = textwrap.shorten(text, 120, placeholder=" ...")
    return re.sub(r"([|<*_\[\]])", r"\\\1", text)

# SPDX-License-Identifier: Apache-2.0
"""Autotuning of block sizes on a GPU, cached in a file.

The rules of kernels/_block_sizes.py choose from shape and target. `tune` tries what lies next to
their choice, one number at a time, and keeps what is faster, for this process and, given a cache,
for later ones: `load_tuning` applies it. Integer results keep their bits; floats that are split
along the depth in another way are rounded in another order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternary_ops._atomic import replace_file
from ternary_ops.errors import FormatError, UnsupportedDevice, need
from ternary_ops.table import Table

_VERSION = 1
_GAIN = 0.98  # a neighbour must take less than this share of the time: clocks are noisy
_ROUNDS = 4  # moves from the rule's choice, at most

Clock = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class TunedBlocks:
    """One place where sizes are chosen: which rule with which arguments, its choice, and what won;
    milliseconds of the whole call before and after.
    """

    rule: str
    arguments: tuple[Any, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class GpuTuneReport:
    """Every place the call passed. str() is a table."""

    rows: tuple[TunedBlocks, ...]

    def __str__(self) -> str:
        """A line a place."""
        cells = [
            (
                row.rule.removesuffix("_blocks"),
                " ".join(map(str, row.arguments[:-1])),
                " ".join(map(str, row.before)),
                " ".join(map(str, row.after)),
                f"{row.before_ms:.4f}",
                f"{row.after_ms:.4f}",
            )
            for row in self.rows
        ]
        return str(Table(("rule", "for", "rule's", "chosen", "ms", "ms then"), cells))


def tune(
    call: Callable[[], object],
    cache: str | os.PathLike[str] | None = None,
    clock: Clock | None = None,
) -> GpuTuneReport:
    """Choose the sizes of blocks of every kernel that `call` launches, by the time of `call`.

    call: runs operators or layers on the GPU, the same each time. cache: a JSON file that what was
    known before is read from, and that the choices are added to. clock: milliseconds of a call;
    default: triton.testing.do_bench's median. Places the cache knows are not measured again.

    Raises UnsupportedDevice without a GPU (unless a clock is passed), FormatError for a cache that
    is damaged.
    """
    clock = _do_bench() if clock is None else clock
    rules = _rules()
    if cache is not None and Path(cache).exists():
        load_tuning(cache)
    heard: dict[Any, Any] = {}
    rules.asked.append(heard)
    try:
        call()
    finally:
        rules.asked.remove(heard)
    rows = []
    for site, rule in heard.items():
        if site not in rules.chosen:
            rows.append(_settle(rules, site, rule, call, clock))
    if cache is not None:
        _write(Path(cache), rules.chosen)
    return GpuTuneReport(tuple(rows))


def _settle(
    rules: Any, site: Any, rule: Any, call: Callable[[], object], clock: Clock
) -> TunedBlocks:
    """Move to a faster neighbour until there is none."""
    best, least = rule, clock(call)
    before, tried = least, {rule}
    for _ in range(_ROUNDS):
        times = {}
        for blocks in rules.neighbours(site, best):
            if blocks in tried:
                continue
            tried.add(blocks)
            rules.chosen[site] = blocks
            try:
                times[blocks] = clock(call)
            except Exception as error:
                if type(error).__name__ != "OutOfResources":
                    rules.chosen.pop(site)
                    raise
        winner = min(times, key=times.__getitem__, default=best)
        if times.get(winner, least) >= _GAIN * least:
            break
        best, least = winner, times[winner]
    rules.chosen[site] = best
    return TunedBlocks(site[0], site[1:], tuple(rule), tuple(best), before, least)


def load_tuning(cache: str | os.PathLike[str]) -> int:
    """Use the choices of a file that `tune` wrote, and say how many; other GPUs' do not matter.

    Raises FormatError for a file that is damaged, with nothing changed.
    """
    rules = _rules()
    try:
        document = json.loads(Path(cache).read_text(encoding="utf-8"))
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}")
        found = dict(_entry(rules, one) for one in document["choices"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"a file that gpu.tune wrote in {os.fspath(cache)}"
        raise FormatError(need(what, repr(error), "Delete it.")) from error
    rules.chosen.update(found)
    return len(found)


def _entry(rules: Any, one: Any) -> tuple[Any, Any]:
    where = rules.Target(*one["target"])
    site = (one["rule"], *one["arguments"], where)
    expected = rules.rules[one["rule"]](*site[1:])
    sizes = one["blocks"]
    if len(sizes) != len(expected) or not all(type(s) is int and s > 0 for s in sizes):
        raise ValueError(f"sizes {sizes}")
    return site, type(expected)(*sizes)


def _write(path: Path, chosen: dict[Any, Sequence[int]]) -> None:
    choices = [
        {
            "rule": site[0],
            "arguments": list(site[1:-1]),
            "target": list(site[-1]),
            "blocks": list(blocks),
        }
        for site, blocks in chosen.items()
    ]
    text = json.dumps({"version": _VERSION, "choices": choices}, indent=1)
    replace_file(path, lambda to: to.write_text(text, encoding="utf-8"))


def _rules() -> Any:
    from ternary_ops.ops._gpu import gpu_module

    return gpu_module("_block_sizes")


def _do_bench() -> Clock:
    import torch

    if not torch.cuda.is_available():
        do = "Run this on a machine with one, or pass a clock."
        raise UnsupportedDevice(need("a GPU to tune on", "none", do))
    from ternary_ops.ops._gpu import gpu_module

    bench = gpu_module("_target").triton.testing.do_bench
    return lambda call: float(bench(call, return_mode="median"))

# SPDX-License-Identifier: Apache-2.0
"""Times of a program, node by node and beside other engines: what `ternary-ops bench` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ternary_ops import runtime
from ternary_ops.benchmark import pruned_networks
from ternary_ops.benchmark.agreement import agreement
from ternary_ops.benchmark.baselines import Engine, engines
from ternary_ops.benchmark.timing import interleaved, torch_threads
from ternary_ops.charts import bars, new_figure, save_figure
from ternary_ops.program.interpret import simulate
from ternary_ops.program.shapes import infer_from, macs
from ternary_ops.runtime import Program

# Image size of the comparison with the NumPy reference, which is slow.
_CHECKED = 48
_SAMPLES, _COMPARED = 16, 8
_REPEATS = 21

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """batch images at once on `threads`, measured for about `seconds`, at a share of `zeros`."""

    batch: int
    zeros: float
    threads: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """engines: a row each; nodes: a row per node of the program."""

    engines: list[Row]
    nodes: list[Row]

    @property
    def match(self) -> bool:
        """True if the outputs of all engines agree."""
        return all(row["match"] == "yes" for row in self.engines)

    def rows(self) -> list[Row]:
        """Both as one table, for CSV: engines leave the columns of nodes empty."""
        columns = dict.fromkeys(key for row in [*self.engines, *self.nodes] for key in row)
        nodes = [{"engine": "ternary-ops", **node} for node in self.nodes]
        return [{key: row.get(key, "") for key in columns} for row in [*self.engines, *nodes]]


def one_layer(op: str, sizes: Sequence[int]) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    """A builder of a network of one layer, and the shape of one input; H and W are kept."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        if op == "linear":
            return nn.Sequential(nn.Linear(sizes[0], sizes[1])).eval()
        layer = nn.Conv2d(sizes[0], sizes[3], sizes[4], padding=sizes[4] // 2)
        return nn.Sequential(layer, nn.ReLU()).eval()

    return build, (sizes[0],) if op == "linear" else tuple(sizes[:3])


def of_layer(op: str, sizes: Sequence[int], settings: Settings, against: Sequence[str]) -> Result:
    """Time one ternary layer of random weights on random inputs."""
    build, shape = one_layer(op, sizes)
    draw = torch.Generator().manual_seed(0)
    x, sample = (torch.rand((n, *shape), generator=draw) for n in (settings.batch, _SAMPLES))
    net = pruned_networks.pruned(build, x, sample, settings.zeros, every_layer=True)
    return _measure(net, sample, sample[:_COMPARED], settings, against)


def of_network(
    name: str, size: int | None, settings: Settings, against: Sequence[str], pattern: str
) -> Result:
    """Time a network of `pruned_networks.SHAPES`, on real images where there are any."""
    channels, side = pruned_networks.shape_of(name, size)
    net = pruned_networks.by_name(
        name, settings.zeros, pattern, settings.batch, size, samples=_SAMPLES
    )
    sample = pruned_networks.images(_SAMPLES, channels, side)
    seen = pruned_networks.images(_COMPARED, channels, side, start=_SAMPLES)
    return _measure(net, sample, seen, settings, against)


def of_file(path: str, size: int | None, settings: Settings) -> Result:
    """Time a saved program on random images of the size it was compiled with, or `size`."""
    program = runtime.load(path)
    shape = (settings.batch, *program.sample[1:])
    if size is not None and len(shape) == 4:
        shape = (*shape[:2], size, size)
    x = np.random.default_rng(0).random(shape, np.float32)
    ours = Engine("ternary-ops", program, f"isa {runtime.isa()}")
    with torch_threads(settings.threads), runtime.num_threads(settings.threads):
        agrees = {"ternary-ops": exact(program, x)}
        return _result(program, x, [ours], agrees, settings)


def exact(program: Program, x: NDArray[np.float32]) -> bool:
    """True if a crop of one input gives the same bits as the NumPy reference."""
    corner = np.ascontiguousarray(x[:1, :, :_CHECKED, :_CHECKED] if x.ndim == 4 else x[:1])
    return bool(np.array_equal(program(corner), simulate(program.graph, corner)[-1]))


def _measure(
    net: pruned_networks.Pruned,
    sample: torch.Tensor,
    seen: torch.Tensor,
    settings: Settings,
    against: Sequence[str],
) -> Result:
    x, threads = np.ascontiguousarray(net.x.numpy()), settings.threads
    with torch_threads(threads), runtime.num_threads(threads), torch.inference_mode():
        found = engines(against, net.dense, net.x, sample, threads)
        ours = Engine("ternary-ops", net.program, f"isa {runtime.isa()}")
        wanted = net.dense(seen).numpy()
        agrees = {
            e.name: agreement(e.in_batches(seen.numpy(), len(x)), wanted).match
            for e in (ours, *found)
        }
        agrees["ternary-ops"] &= exact(net.program, x)
        return _result(net.program, x, [ours, *found], agrees, settings)


def _result(
    program: Program,
    x: NDArray[np.float32],
    found: Sequence[Engine],
    agrees: dict[str, bool],
    settings: Settings,
) -> Result:
    """Rows; a time of ours, and every ratio, stands only where results match."""
    ms = interleaved({e.name: partial(e.run, x) for e in found}, settings.seconds)
    own = ms["ternary-ops"] if agrees["ternary-ops"] else float("nan")
    count = sum(macs(program.graph, infer_from(program.graph, x.shape)))
    rows = []
    for engine in found:
        time = ms[engine.name] if agrees[engine.name] else float("nan")
        rows.append(
            {
                "engine": engine.name,
                "ms": time,
                "times ours": time / own,
                "dense GMAC/s": count / time / 1e6,
                "match": "yes" if agrees[engine.name] else "NO",
                "note": engine.note,
            }
        )
    return Result(rows, _nodes(program, x))


def _nodes(program: Program, x: NDArray[np.float32]) -> list[Row]:
    return [
        {
            "node": row["node"],
            "op": row["op"],
            "layer": row["name"],
            "shape": "x".join(map(str, row["shape"])),
            "ms": row["ms"],
            "density": row["density"],
            "GMAC/s": row["gmac_s"],
            "% of ceiling": None if row["of_ceiling"] is None else 100 * row["of_ceiling"],
        }
        for row in program.profile(x, _REPEATS)
    ]


def plot(result: Result, path: str | Path) -> None:
    """Save a chart: ms of every engine, and of every node. Raises MissingExtra."""
    figure, (beside, inside) = new_figure(2)
    known = [row for row in result.engines if row["ms"] == row["ms"]]
    bars(beside, [row["engine"] for row in known], [row["ms"] for row in known], "ms", False, True)
    names = [f"{row['node']} {row['layer'] or row['op']}" for row in result.nodes]
    figure.set_figheight(max(3.6, 0.14 * len(names)))
    bars(inside, names, [row["ms"] for row in result.nodes], "ms, ternary-ops", False, True)
    save_figure(figure, path)

# SPDX-License-Identifier: Apache-2.0
"""Float block-sparse 3x3 convolutions of a ResNet against dense float32 engines, in one run.

    python bench/block_sparse.py [--threads 1] [--rounds 21] [--isa NAME] [--csv block_sparse.csv]

At each share of kept blocks: the layer inside a program (its neighbors' layout, as the rivals have
theirs) and the operator on plain NCHW tensors, conversions included. Rivals: oneDNN as torch calls
it with weights reordered beforehand, on its own blocked layout and on channels_last (what
torch.compile with freezing makes of a convolution), plain F.conv2d, and OpenVINO where installed, a
chain of four such layers divided by four. Ratios are to the fastest of them in the same rounds. The
ceiling is fused multiply-adds from registers; of_ceiling counts the kept weights only. `match`:
our output lies within tests/cases.float_bound of a float64 convolution, and the rivals' within it
of the dense one; without it no speed is printed. With --csv, a plot of time against density lies
beside the table, break-even marked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _measure import RESULTS, interleave, ratio, setup, spread, stopwatch, warm, write_csv

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from cases import EPS, float_bound

from ternary_ops import ops
from ternary_ops._native import core

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
BLOCKS = ((4, 4), (1, 16))
CHAIN = 4
RIVALS = ("oneDNN, blocked", "oneDNN, channels_last", "torch conv2d", "OpenVINO")

Run = Callable[[], Any]


def block_weight(channels: int, block: tuple[int, int], density: float) -> torch.Tensor:
    """Random [O, I, 3, 3]; a share `density` of the blocks is kept."""
    rng = np.random.default_rng(0)
    n, m = block
    weight = rng.standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)
    grid = np.zeros((channels // n) * (channels // m) * 9, bool)
    grid[: round(density * grid.size)] = True
    kept = rng.permutation(grid).reshape(channels // n, channels // m, 3, 3)
    weight *= kept.repeat(n, 0).repeat(m, 1)
    return torch.from_numpy(weight.astype(np.float32))


def within_bound(y: Any, x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Is y the convolution, up to what float32 sums may err?"""
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    size = F.conv2d(x.double().abs(), weight.double().abs(), padding=1)
    bound = float_bound(weight[0].numel()) * EPS * size + 1e-30
    return bool(((torch.as_tensor(np.asarray(y)).double() - wanted).abs() <= bound).all())


class Ours:
    """The layer as the last node of a program, and as the operator."""

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, block: tuple[int, int]) -> None:
        o, i, r, s = weight.shape
        last = np.ascontiguousarray(weight.permute(0, 2, 3, 1).numpy())
        self.engine, self.x = core().Engine(), x.numpy()
        attrs = {
            "kind": "float",
            "shape": (o, r, s, i),
            "weights": last,
            "scale": np.ones(o, np.float32),
            "stride": (1, 1),
            "padding": (1, 1),
            "more_padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
            "gate": False,
        }
        image = self.engine.add("input", [], {"c": i, "rank": 4})
        self.node = self.engine.add("conv2d", [image], attrs)
        self.engine.output(self.node)
        blocks = ops.blocks.from_dense(weight, block)
        packed = ops.blocks.pack(blocks, o, i, (r, s))
        self.operator: Run = partial(
            ops.block_sparse_conv2d, x, blocks, o, 3, padding=1, packed=packed
        )
        outputs = (self.engine.run(self.x), self.operator())
        self.match = all(within_bound(y, x, weight) for y in outputs)

    def milliseconds(self) -> float:
        """Time of the convolution alone, the middle of three runs of the program."""
        warm(lambda: self.engine.run(self.x))
        return float(self.engine.profile(self.x, 3)[self.node]["ms"])


def openvino_chain(x: torch.Tensor, weight: torch.Tensor, threads: int) -> Run | None:
    """CHAIN such layers in one OpenVINO model; None where it is not installed."""
    try:
        import openvino as ov
        from openvino import opset13 as op
    except ImportError:
        return None
    data = y = op.parameter(list(x.shape), np.float32)
    for _ in range(CHAIN):
        filters = op.constant(weight.numpy())
        y = op.convolution(y, filters, [1, 1], [1, 1], [1, 1], [1, 1])
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    model = ov.Core().compile_model(ov.Model([y], [data]), "CPU", options)
    request, given = model.create_infer_request(), x.numpy()
    return lambda: request.infer([given], share_inputs=True)[0]


def rivals(x: torch.Tensor, weight: torch.Tensor, threads: int) -> tuple[dict[str, Run], bool]:
    """Dense engines by name, and whether they compute the convolution."""
    blocked = x.to_mkldnn()
    reordered = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), 1, 1, 1, 1)
    last = x.contiguous(memory_format=torch.channels_last)
    filters = torch.ops.mkldnn._reorder_convolution_weight(
        weight.to_mkldnn().to_dense(), [1, 1], [1, 1], [1, 1], 1, list(x.shape)
    )
    pointwise = torch.ops.mkldnn._convolution_pointwise.default
    found: dict[str, Run] = {
        "oneDNN, blocked": lambda: torch.mkldnn_convolution(
            blocked, reordered, None, (1, 1), (1, 1), (1, 1), 1
        ),
        "oneDNN, channels_last": lambda: pointwise(
            last, filters, None, [1, 1], [1, 1], [1, 1], 1, "none", [], ""
        ),
        "torch conv2d": lambda: F.conv2d(x, weight, padding=1),
    }
    match = all(
        within_bound(y.to_dense() if str(y.layout) == "torch._mkldnn" else y, x, weight)
        for y in (run() for run in found.values())
    )
    chain = openvino_chain(x, weight, threads)
    if chain is not None:
        wanted = x.double()
        for _ in range(CHAIN):
            wanted = F.conv2d(wanted, weight.double(), padding=1)
        match &= bool(np.allclose(chain(), wanted.numpy(), rtol=1e-3, atol=1e-4))
        found["OpenVINO"] = chain
    return found, match


def measure(channels: int, size: int, rounds: int, threads: int) -> list[dict[str, object]]:
    """One row a density and block shape."""
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    others, others_match = rivals(x, block_weight(channels, (1, 1), 1.0), threads)
    made: dict[str, int] = {}

    def burst() -> float:
        # Threads share a core's ports with nobody here: the ceiling of n threads is n times one.
        timer = stopwatch(lambda: made.update(macs=core().float_burst(20_000)))
        return timer() / made["macs"] / threads

    timers: dict[Any, Any] = {"ceiling": burst}
    for name, run in others.items():
        share = CHAIN if name == "OpenVINO" else 1
        timers[name] = lambda run=run, share=share: stopwatch(run)() / share
    ours = {
        (block, density): Ours(x, block_weight(channels, block, density), block)
        for block in BLOCKS
        for density in DENSITIES
    }
    for key, layer in ours.items():
        timers["layer", key], timers["op", key] = layer.milliseconds, stopwatch(layer.operator)
    times = interleave(timers, rounds)
    best = min(others, key=lambda name: spread(times[name])[0])
    macs = channels**2 * 9 * size**2
    rows: list[dict[str, object]] = []
    for (block, density), layer in ours.items():
        own, op = times["layer", (block, density)], times["op", (block, density)]
        kept = [t / (macs * density) for t in own]
        match = layer.match and others_match
        figures = {
            "us": round(spread(own)[0] * 1e3, 1),
            "us_p20": round(spread(own)[1] * 1e3, 1),
            "us_p80": round(spread(own)[2] * 1e3, 1),
            "op_us": round(spread(op)[0] * 1e3, 1),
            "vs_best": round(ratio(times[best], own), 2),
            "op_vs_best": round(ratio(times[best], op), 2),
            "of_ceiling": round(ratio(times["ceiling"], kept), 2),
        }
        rows.append(
            {
                "layer": f"3x3, {channels} at {size}x{size}",
                "block": f"{block[0]}x{block[1]}",
                "density": density,
                "match": match,
                **(figures if match else dict.fromkeys(figures, "")),
                "best": best,
                **{
                    f"{name} us": round(spread(times[name])[0] * 1e3, 1) if name in times else ""
                    for name in RIVALS
                },
                "ceiling_gmac_s": round(1 / spread(times["ceiling"])[0] / 1e6, 1),
                "threads": threads,
            }
        )
    return rows


def break_even(points: list[tuple[float, float]], level: float) -> float | None:
    """The density, between two measured ones, at which the time reaches `level`; None: nowhere."""
    for (d0, t0), (d1, t1) in zip(points, points[1:], strict=False):
        if t0 < level <= t1:
            return float(d0 + (d1 - d0) * (level - t0) / (t1 - t0))
    return None


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time against the share of kept blocks, one axis a layer; the fastest rival as a level."""
    from ternary_ops.charts import new_figure, save_figure

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axes = new_figure(len(layers))
    for ax, layer in zip(axes, layers, strict=True):
        mine = [row for row in rows if row["layer"] == layer and row["match"]]
        if not mine:
            raise SystemExit(f"{layer}: outputs do not match, there is nothing to draw")
        level = float(mine[0][f"{mine[0]['best']} us"])
        ax.axhline(level, color="#bc6c25", label=f"dense, {mine[0]['best']}")
        for block, color in zip(
            dict.fromkeys(r["block"] for r in mine), ("#2a6f97", "#6a994e"), strict=True
        ):
            points = sorted((r["density"], r["us"]) for r in mine if r["block"] == block)
            ax.loglog(*zip(*points, strict=True), "o-", color=color, label=f"{block} blocks")
            at = break_even(points, level)
            if at is not None:
                ax.plot([at], [level], "D", color=color)
                ax.annotate(f"{at:.2f}", (at, level), (0, 6), textcoords="offset points")
        ax.set_title(layer, fontsize=9)
        ax.set_xlabel("share of kept blocks")
        ax.legend(fontsize=7)
    axes[0].set_ylabel("microseconds")
    save_figure(figure, path)


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=21)
    rows: list[dict[str, Any]] = []
    for channels, size in LAYERS:
        for row in measure(channels, size, options.rounds, options.threads):
            rows.append({**row, **about})
            print(
                f"{row['layer']:18} {row['block']:>5} {row['density']:>5} match {row['match']!s:5}"
                f" {row['us']:>8} us ({row['vs_best']}x {row['best']}), operator {row['op_us']:>8}"
                f" us ({row['op_vs_best']}x), {row['of_ceiling']} of the ceiling"
            )
    if options.csv:
        print("written:", write_csv(options.csv, rows))
        plot(rows, (RESULTS / options.csv).with_suffix(".svg"))
    return 0 if all(row["match"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

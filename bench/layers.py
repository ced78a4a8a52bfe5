# SPDX-License-Identifier: Apache-2.0
"""Layers of ResNet-18 against the machine's own dense int8 ceiling and torch int8, in one run.

    python bench/layers.py [--threads 1] [--rounds 41] [--isa NAME] [--csv layers.csv]

Each layer runs u8 -> u8 inside a program (its neighbors' layout, no conversion counted) at several
densities of quads. The ceiling is dot products from registers in the same round; torch int8 is its
quantized convolution with the same weights, u8 -> u8. The environment holds that to an instruction
set: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2, or SSE41 and default. `match` says that our
output equals the NumPy reference bit for bit and torch's within one code; without it no speed is
printed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from _measure import conclude, interleave, ratio, setup, spread, stopwatch, warm

from ternary_ops import reference
from ternary_ops._native import core
from ternary_ops.layout import codes

X_SCALE, X_ZERO, Y_SCALE, Y_ZERO = 0.05, 3, 0.4, 5


@dataclass(frozen=True)
class Layer:
    """One convolution on a square image."""

    name: str
    channels: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1

    @property
    def padding(self) -> int:
        """Same-size padding."""
        return self.kernel // 2

    def macs(self) -> int:
        """Products of the dense layer."""
        out = (self.size - 1) // self.stride + 1
        return self.channels * self.outputs * self.kernel**2 * out**2


LAYERS = (
    Layer("stage 1, 3x3, 64 at 56x56", 64, 64, 56, 3),
    Layer("stage 2, 3x3, 128 at 28x28", 128, 128, 28, 3),
    Layer("stage 3, 3x3, 256 at 14x14", 256, 256, 14, 3),
    Layer("stage 4, 3x3, 512 at 7x7", 512, 512, 7, 3),
    Layer("down 2, 3x3 stride 2, 64 to 128", 64, 128, 56, 3, 2),
    Layer("1x1, 256 to 1024 at 14x14", 256, 1024, 14, 1),
)
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05)


def ternary_weights(layer: Layer, density: float, rng: np.random.Generator) -> Any:
    """Random int8 [O, I, R, S] in {-1, 0, 1}; `density` of the quads hold something."""
    o, i, k = layer.outputs, layer.channels, layer.kernel
    t = rng.integers(-1, 2, (o, i, k, k)).astype(np.int8)
    quads = t.reshape(o, i // 4, 4, k, k)
    empty = (quads == 0).all(axis=2)
    quads[:, :, 0][empty] = 1
    keep = rng.permutation(empty.size) < round(density * empty.size)
    quads *= keep.reshape(empty.shape)[:, :, None].astype(np.int8)
    return t


class Ours:
    """The layer inside a program; the last but one node is the convolution."""

    def __init__(self, layer: Layer, weights: Any, scale: Any, x: Any) -> None:
        self.engine = core().Engine()
        o, i, k, _ = weights.shape
        image = self.engine.add("input", [], {"c": layer.channels, "rank": 4})
        q = self.engine.add("quantize", [image], {"y": (X_SCALE, X_ZERO), "fine": False})
        attrs = {
            "kind": "ternary",
            "shape": (o, k, k, i),
            "weights": codes.conv_codes(weights),
            "scale": scale,
            "stride": (layer.stride, layer.stride),
            "padding": (layer.padding, layer.padding),
            "more_padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
            "gate": False,
            "y": (Y_SCALE, Y_ZERO),
        }
        y = self.engine.add("conv2d", [q], attrs)
        self.engine.output(self.engine.add("dequantize", [y], {}))
        self.node, self.x = y, x

    def milliseconds(self) -> float:
        """Time of the convolution alone, the middle of three runs of the program."""
        warm(lambda: self.engine.run(self.x))
        return float(self.engine.profile(self.x, 3)[self.node]["ms"])

    def values(self) -> Any:
        """Input and output codes."""
        nodes = self.engine.run_all(self.x)
        return nodes[1], nodes[self.node]


def torch_int8(layer: Layer, weights: Any, scale: Any, q: Any) -> Any:
    """torch's quantized convolution and its input, u8 -> u8, the same numbers."""
    conv = torch.ao.nn.quantized.Conv2d(
        layer.channels, layer.outputs, layer.kernel, stride=layer.stride, padding=layer.padding
    )
    w_scale = torch.from_numpy(scale.astype(np.float64) / X_SCALE)
    zero = torch.zeros(layer.outputs, dtype=torch.int64)
    w = torch._make_per_channel_quantized_tensor(torch.from_numpy(weights), w_scale, zero, 0)
    conv.set_weight_bias(w, None)
    conv.scale, conv.zero_point = Y_SCALE, Y_ZERO
    x = torch._make_per_tensor_quantized_tensor(torch.from_numpy(q), X_SCALE, X_ZERO)
    return conv, x.contiguous(memory_format=torch.channels_last)


def measure(layer: Layer, rounds: int, threads: int) -> list[dict[str, object]]:
    """One row a density."""
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (1, layer.channels, layer.size, layer.size)).astype(np.float32)
    scale = rng.uniform(0.002, 0.01, layer.outputs).astype(np.float32)
    timers: dict[str, Any] = {}
    matches: dict[float, bool] = {}
    made: dict[str, int] = {}

    def burst() -> float:
        # Threads share a core's ports with nobody here: the ceiling of n threads is n times one.
        timer = stopwatch(lambda: made.update(macs=core().dot_burst(20_000)))
        return timer() / made["macs"] / threads

    timers["ceiling"] = burst
    for density in DENSITIES:
        weights = ternary_weights(layer, density, rng)
        ours = Ours(layer, weights, scale, x)
        q, y = ours.values()
        acc = reference.conv2d_acc(q, X_ZERO, weights, layer.stride, layer.padding, 1, 1)
        wanted = reference.epilogue(acc, scale, None, None, -np.inf, np.inf, (Y_SCALE, Y_ZERO))
        matches[density] = bool(np.array_equal(y, wanted))
        timers[f"ours {density}"] = ours.milliseconds
        if density == 1.0:
            conv, tx = torch_int8(layer, weights, scale, q)
            off = np.abs(conv(tx).int_repr().numpy().astype(int) - wanted.astype(int))
            matches[density] &= bool(off.max() <= 1)
            timers["torch"] = stopwatch(partial(conv, tx))
    times = interleave(timers, rounds)
    rows: list[dict[str, object]] = []
    for density in DENSITIES:
        own = times[f"ours {density}"]
        ms, low, high = spread(own)
        match = matches[density] and matches[1.0]
        per_mac = [t / layer.macs() for t in own]
        rows.append(
            {
                "layer": layer.name,
                "density": density,
                "match": match,
                "us": round(ms * 1e3, 1) if match else "",
                "us_p20": round(low * 1e3, 1) if match else "",
                "us_p80": round(high * 1e3, 1) if match else "",
                "gmac_s": round(layer.macs() / ms / 1e6) if match else "",
                "of_ceiling": round(ratio(times["ceiling"], per_mac), 2) if match else "",
                "vs_torch_int8": round(ratio(times["torch"], own), 2) if match else "",
                "torch_int8_us": round(spread(times["torch"])[0] * 1e3, 1),
                "ceiling_gmac_s": round(1 / spread(times["ceiling"])[0] / 1e6),
                "threads": threads,
            }
        )
    return rows


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=41)
    print(f"{'layer':34} density  match      us  GMAC/s  of ceiling  vs torch int8 (us)")
    rows = []
    for layer in LAYERS:
        for row in measure(layer, options.rounds, options.threads):
            rows.append({**row, **about})
            print(
                f"{row['layer']:34} {row['density']:>7}  {row['match']!s:5} {row['us']:>7}"
                f" {row['gmac_s']:>7} {row['of_ceiling']:>10}x {row['vs_torch_int8']:>9}x"
                f" ({row['torch_int8_us']})"
            )
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())

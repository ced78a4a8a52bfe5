# SPDX-License-Identifier: Apache-2.0
"""LayerNorm that writes codes: NumPy's bits on every instruction set, and what compile makes so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_access import running
from programs import Builder
from small_networks import ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import reference, runtime
from ternary_ops.program.graph import Graph
from ternary_ops.program.interpret import simulate


def program(channels: int, rank: int) -> Graph:
    """A LayerNorm whose codes a convolution with a border, or a linear layer, reads."""
    b = Builder(channels, c=channels, rank=rank)
    w = b.weight("float", channels, 1, zeros=0.0)
    x = b("layer_norm", 0, w=w, eps=1e-5, y=b.params())
    if rank == 4:
        b("conv2d", x, w=b.weight("int8", 6, channels, 3, 3), padding=(1, 1))
    else:
        b("linear", x, w=b.weight("int8", 6, channels))
    return b.graph()


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 33, 3, 40), (2, 70, 1, 1), (2, 17, 64)])
def test_numpys_bits_everywhere(shape: tuple[int, ...]) -> None:
    graph = program(shape[-1] if len(shape) == 3 else shape[1], len(shape))
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) * 3 + rng.normal(size=shape[:1] + (1,) * (len(shape) - 1)) * 50
    x = x.astype(np.float32)
    wanted = simulate(graph, x)
    assert np.unique(wanted[1]).size > 20
    for isa in runtime.available_isas():
        for threads in (1, 3):
            with running(isa, threads):
                found = runtime.Program(graph, x.shape).trace(x)
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(a, b)


def test_within_a_code_of_float64() -> None:
    rng = np.random.default_rng(1)
    x, w, b = rng.normal(30, 2, (3, 200, 50)), rng.normal(size=200), rng.normal(size=200)
    x, w, b = (v.astype(np.float32) for v in (x, w, b))
    found = reference.layer_norm_codes(x, w, b, 1e-6, (0.05, 120))
    wanted = reference.quantize(reference.layer_norm(x, w, b, 1e-6).astype(np.float32), 0.05, 120)
    off = np.abs(found.astype(int) - wanted)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


class Net(nn.Module):
    """A block of a transformer's MLP behind a convolution."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.conv, self.beside = nn.Conv2d(3, 12, 3, padding=1), beside
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        made = self.fc(y)
        return torch.cat([made, y], 3) if self.beside else made


@pytest.mark.parametrize("beside", [False, True])
def test_codes_for_layers_and_floats_for_who_reads_them(beside: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    program = tops.compile(ready(Net(beside), x, weights="int8"), x)
    made = [node.op for node in program.graph.nodes]
    norm = made.index("layer_norm")
    assert (program.graph.values[norm].y is None) == beside
    assert made.count("quantize") == 1 + beside  # of the image, and of the floats

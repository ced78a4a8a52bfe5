# SPDX-License-Identifier: Apache-2.0
"""GroupNorm in networks: floats between layers of any kind, as module and as function."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.program.interpret import simulate


class Normalized(nn.Module):
    """Conv, GroupNorm, SiLU, twice, around a residual; the second norm is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12, eps=1e-4)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.randn(12))
        self.plain, self.head = nn.GroupNorm(1, 12, affine=False), nn.Linear(12, 5)
        nn.init.normal_(self.norm.weight, 1.0, 0.2)
        nn.init.normal_(self.norm.bias, 0.0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        x = x + F.group_norm(self.conv(x), 3, self.weight, self.bias)
        return self.head(self.plain(x).mean((2, 3)))


def test_float() -> None:
    torch.manual_seed(0)
    model = Normalized().eval()
    program = tops.compile(model, images(2, 3, 12, 10))
    norms = [node for node in program.graph.nodes if node.op == "group_norm"]
    assert [node.attrs["groups"] for node in norms] == [4, 3, 1]
    for shape in ((2, 3, 12, 10), (1, 3, 33, 17)):
        assert error(program, model, images(*shape, seed=3)) < 1e-5


def test_integers_around_it() -> None:
    torch.manual_seed(0)
    model = ready(Normalized(), images(4, 3, 12, 10), weights="int8")
    program = tops.compile(model, images(2, 3, 12, 10))
    kinds = zip(program.graph.nodes, program.graph.values, strict=True)
    assert sum(v.y is not None or n.op in ("conv2d", "linear") for n, v in kinds) >= 3
    x = images(2, 3, 14, 9, seed=5)
    for a, b in zip(program.trace(x.numpy()), simulate(program.graph, x.numpy()), strict=True):
        if a.dtype == np.uint8:  # a float norm may round to the next code
            assert np.abs(a.astype(int) - b).max() <= 1
    assert error(program, model, x) < 0.03


def test_rows_and_tokens() -> None:
    """Groups of the channels, which are axis 1, and of whatever lies behind it."""
    torch.manual_seed(0)
    for body, shape in ((nn.GroupNorm(2, 8), (3, 8)), (_Turned(), (3, 7, 5))):
        model, x = nn.Sequential(body, nn.ReLU()).eval(), torch.randn(shape)
        assert error(tops.compile(model, x), model, torch.randn(2, *shape[1:])) < 1e-5


class _Turned(nn.Module):
    """A GroupNorm over [N, C, L] of tokens [N, L, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(5, 6), nn.GroupNorm(2, 6)
        nn.init.normal_(self.norm.weight, 1.0, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(x).transpose(1, 2)).transpose(1, 2)

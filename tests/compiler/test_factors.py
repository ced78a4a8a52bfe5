# SPDX-License-Identifier: Apache-2.0
"""Factors beside layers, and functions that networks spell out, leave nothing in the program."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.program.interpret import simulate
from ternary_ops.runtime import Program

Forward = Callable[[Any, Tensor], Tensor]


class Network(nn.Module):
    """Layers of several kinds under one forward."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        x = self._forward(self, F.gelu(self.stem(x)))
        return self.fc(x.mean((2, 3)))


def ops(program: Program) -> list[str]:
    """Operators between stem and head."""
    named = [str(node.attrs.get("fn", node.op)) for node in program.graph.nodes]
    rest = named[named.index("gelu") + 1 :]
    return [op for op in rest if op not in ("quantize", "dequantize")][:-3]


FOLDED: dict[str, tuple[Forward, list[str]]] = {
    "factor behind": (lambda m, x: m.a(x) * 0.2, ["conv2d"]),
    "affine behind": (lambda m, x: 1 - (m.a(x) - 0.5) / 3, ["conv2d"]),
    "behind a clamp": (lambda m, x: -F.relu6(m.a(x)) / 6 + 1, ["conv2d"]),
    "clamp behind that": (lambda m, x: F.relu(m.a(x) * 2 - 1), ["conv2d"]),
    "behind slopes": (lambda m, x: F.leaky_relu(m.a(x), 0.3) * 0.7, ["conv2d"]),
    "factor before": (lambda m, x: m.a(x * 1.7), ["conv2d"]),
    "before two": (lambda m, x: m.a(y := x * 1.7) + m.b(y), ["conv2d", "conv2d"]),
    "before a pool": (
        lambda m, x: m.a(y := x * 1.7) + m.b(F.max_pool2d(F.avg_pool2d(y, 3, 1, 1), 3, 1, 1)),
        ["conv2d", "avg_pool2d", "max_pool2d", "conv2d"],
    ),
    "scaled branch": (lambda m, x: m.a(x) * 0.2 + x, ["conv2d"]),
    "scaled second branch": (lambda m, x: x + m.a(x).mul(0.2), ["conv2d"]),
    "difference": (lambda m, x: x - m.a(x), ["conv2d"]),
    "norm beside layers": (lambda m, x: m.b(x) + m.a(x) + m.norm(x), ["conv2d"] * 3),
    "hardsigmoid": (lambda m, x: F.relu6(3 + m.a(x)) / 6, ["conv2d"]),
    "norm before": (lambda m, x: m.b(m.norm(x)), ["conv2d"]),
}  # fmt: skip
KEPT: dict[str, tuple[Forward, list[str]]] = {
    "offset before padding": (lambda m, x: m.a(x + 1), ["affine", "conv2d"]),
    "read elsewhere": (
        lambda m, x: (y := m.a(x)) * 2 + y.tanh(), ["conv2d", "affine", "tanh", "add"]
    ),
    "factor of a sum": (lambda m, x: (m.a(x) + x) * 2, ["conv2d", "affine"]),
    "negative factor behind slopes": (
        lambda m, x: F.leaky_relu(m.a(x), 0.3) * -1.0, ["conv2d", "affine"]
    ),
    "factor that another reads": (
        lambda m, x: m.a(y := x * 1.7) + y.tanh(), ["affine", "conv2d", "tanh", "add"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FOLDED, *KEPT])
def test_factors_beside_layers(name: str) -> None:
    forward, wanted = {**FOLDED, **KEPT}[name]
    torch.manual_seed(0)
    model, x = Network(forward), images(2, 3, 9, 8)
    model(x)  # statistics
    program = tops.compile(model.eval(), x)
    if name not in ("factor of a sum", "read elsewhere", "factor that another reads"):
        assert sorted(ops(program)) == sorted(wanted)
    assert error(program, model, images(3, 3, 7, 12, seed=1)) < 1e-5
    model = ready(model, x, weights="int8")
    program = tops.compile(model, x)
    assert error(program, model, images(3, 3, 7, 12, seed=1)) < 0.04
    values = program.trace(x.numpy())
    for value, exact in zip(values, simulate(program.graph, x.numpy()), strict=True):
        if value.dtype == np.uint8 and value is not values[0]:
            assert np.abs(value.astype(int) - exact).max() <= 1  # behind the GELU of floats


class Scaled(nn.Module):
    """Tokens, scaled and shifted by parameters before and behind linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.factor, self.offset = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.factor * self.b(F.gelu(self.a(self.norm(x))))
        x = torch.addcmul(self.offset, self.factor, x)
        return self.b(F.gelu(self.a(x))) * self.factor + x


def test_factors_of_channels_beside_linear_layers() -> None:
    torch.manual_seed(0)
    model, x = Scaled().eval(), torch.randn(2, 10, 8)
    program = tops.compile(model, x)
    kinds = [node.op for node in program.graph.nodes]
    assert kinds.count("linear") == 4 and kinds.count("mul") == kinds.count("add") == 1
    assert error(program, model, torch.randn(3, 7, 8)) < 1e-5
    model = ready(model, x, weights="int8")
    program = tops.compile(model, x)
    ends = [node for node in program.graph.nodes if node.op == "linear" and len(node.inputs) == 2]
    assert len(ends) == 2  # residuals and factors are theirs
    assert error(program, model, torch.randn(3, 7, 8)) < 0.04


SPELLED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "silu of its negation": lambda x: torch.sigmoid(x) * x,
    "hardswish": lambda x: x * torch.clip(x + 3, 0, 6) / 6,
    "hardswish by parts": lambda x: x * (F.relu6(x + 3.0) * (1 / 6)),
    "hardswish of a hardsigmoid": lambda x: F.hardsigmoid(x) * x,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ),
}


@pytest.mark.parametrize("name", SPELLED)
def test_functions_that_are_spelled_out(name: str) -> None:
    torch.manual_seed(0)
    model, x = Network(lambda m, x: m.b(SPELLED[name](m.a(x)))).eval(), images(2, 3, 9, 8)
    program = tops.compile(model, x)
    assert ops(program) == ["conv2d", name.split()[0], "conv2d"]
    assert error(program, model, images(1, 3, 7, 12, seed=1)) < 1e-5
    model = ready(model, x, weights="int8")
    program = tops.compile(model, x)
    assert ops(program) == ["conv2d", name.split()[0], "conv2d"]
    kinds = [value.y for value in program.graph.values]
    first = [node.op for node in program.graph.nodes].index("conv2d", 4)
    assert None not in kinds[first : first + 3]  # integers through the function
    assert error(program, model, x) < 0.04


def test_what_is_nearly_a_function_stays_as_it_is() -> None:
    model = Network(lambda m, x: (y := m.a(x)) * torch.clip(y + 3, 0, 5.99) / 6).eval()
    program = tops.compile(model, images(2, 3, 9, 8))
    assert "hardswish" not in ops(program) and "mul" in ops(program)
    assert error(program, model, images(1, 3, 7, 12, seed=1)) < 1e-5

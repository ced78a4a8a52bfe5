# SPDX-License-Identifier: Apache-2.0
"""At 8 bits a program is as exact as the fake-quantized network, and `rounding` shows where not."""

from __future__ import annotations

import math

import pytest
import torch
from small_networks import error, images
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.compiler.prepare import float_activations
from ternary_ops.compiler.rounding import rounding

_WIDTH, _HEADS = 24, 3


class Attention(nn.Module):
    """Attention over tokens, all from one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, _HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        made = torch.softmax(q @ k.transpose(-2, -1) * 0.3, -1) @ v
        return self.out(made.transpose(1, 2).reshape(n, length, _WIDTH))


class Block(nn.Module):
    """A transformer's block whose parts are small beside its residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(_WIDTH), Attention()
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 48), nn.Linear(48, _WIDTH)
        self.scale1, self.scale2 = (nn.Parameter(torch.rand(_WIDTH) * 0.05) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.down(torch.relu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Blocks, a norm and the mean of all tokens; only what the blocks add counts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTH, 4, 4)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class Positions(nn.Module):
    """A class token of other numbers, and a convolution of the image tokens that adds places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _WIDTH, 4, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, _WIDTH))
        self.places = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, groups=_WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = 4 * self.stem(x)
        n, c, h, w = x.shape
        x = torch.cat([self.token.expand(n, -1, -1), x.flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            token, rest = x[:, :1], x[:, 1:].transpose(1, 2).reshape(n, c, h, w)
            rest = (rest + self.places(rest)).flatten(2).transpose(1, 2)
            x = block(torch.cat([token, rest], 1))
        return self.head(self.norm(x)[:, 0])


class Heads(nn.Module):
    """Two heads whose outputs nearly cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU())
        self.first, self.second = nn.Linear(96, 7), nn.Linear(96, 7)
        with torch.no_grad():
            self.first.bias += 20.0
            self.second.bias -= 20.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).flatten(1)
        return self.first(x) + self.second(x)


class Residual(nn.Module):
    """A residual stream that convolutions read: its sums are codes, to which blocks add little."""

    sums = 4

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(self.sums))
        for block in self.blocks:
            block.weight.data *= 0.02

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class LongResidual(Residual):
    """The same of so many sums that rounding each would add up."""

    sums = 9


def quantized(kind: type[nn.Module], x: Tensor) -> tuple[nn.Module, Tensor]:
    """The network with all layers at 8 bits, and what it made of x as floats."""
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        wanted = model(x)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    tops.calibrate(model, [images(4, 3, 24, 20, seed=1), x])
    return model, wanted


def sqnr(got: Tensor, wanted: Tensor) -> float:
    noise = float((got - wanted).double().square().sum())
    return 10 * math.log10(float(wanted.double().square().sum()) / noise)


@pytest.mark.parametrize("kind", [Transformer, Positions, Heads, LongResidual])
def test_a_program_is_as_exact_as_the_fake_quantized_network(kind: type[nn.Module]) -> None:
    x = images(16, 3, 24, 20)  # decibels of four images scatter by half of one
    model, wanted = quantized(kind, x)
    program = tops.compile(model, x[:1])
    assert any(value.y is not None for value in program.graph.values)
    with torch.no_grad():
        twin = sqnr(model(x), wanted)
    assert sqnr(torch.from_numpy(program(x.numpy())), wanted) >= twin - 1
    report = rounding(model, x)
    assert report.loss < 1
    assert str(report).count("\n") == len(report.rows) + 2


def test_rounding_names_where_a_program_parts() -> None:
    x = images(4, 3, 24, 20)
    model, _ = quantized(Residual, x)
    report = rounding(model, x)
    first = report.first()
    assert first is not None and first.codes is not None and first.place.startswith("add() in")
    assert str(report).endswith(f"they part at {first.place}")
    assert report.first(least=100.0) is None
    last = report.rows[-1]
    assert last.codes is None and last.place.startswith("head")
    with torch.no_grad():
        with float_activations(model):
            wanted = model(x)
        twin = sqnr(model(x), wanted)
    got = sqnr(torch.from_numpy(tops.compile(model, x)(x.numpy())), wanted)
    assert last.torch == pytest.approx(twin, abs=0.01)
    assert last.program == pytest.approx(got, abs=0.01)
    assert error(tops.compile(model, x), model, x) < 0.05

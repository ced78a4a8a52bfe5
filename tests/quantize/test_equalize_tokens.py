# SPDX-License-Identifier: Apache-2.0
"""equalize_ of networks that mix tokens: factors go through LayerNorm and attention's values."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig
from ternary_ops.quantize import equalize_

WIDTH, HEADS = 12, 3


class Norm(nn.LayerNorm):
    """A forward of its own that calls the function, as libraries have it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """Pre-norm attention and MLP. fused: PyTorch's function, with a bias as Swin has it."""

    def __init__(self, act: str, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.act, self.fused = getattr(F, act), fused
        self.bias = nn.Parameter(torch.randn(1, HEADS, 17, 17))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        heads = self.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, c // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        else:
            y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, c))
        out: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return out


class Net(nn.Module):
    """Patches, a class token, positions, a block, a norm and a classifier."""

    def __init__(self, act: str = "gelu", fused: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos = nn.Parameter(torch.randn(1, 17, WIDTH))
        self.block, self.norm = Block(act, fused), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.cls.expand(len(y), -1, -1), y], 1) + self.pos
        out: Tensor = self.head(self.norm(self.block(y)).mean(1))
        return out


def net(act: str = "gelu", fused: bool = False, spread: float = 0.0) -> Net:
    """spread: of the sizes of norms' channels and values', undone where they are read."""
    torch.manual_seed(5)
    made = Net(act, fused).eval()
    with torch.no_grad():
        for norm, reader in (
            (made.block.norm1, made.block.qkv),
            (made.block.norm2, made.block.fc1),
        ):
            factor = torch.exp(spread * torch.randn(WIDTH))
            norm.weight.copy_((1 + 0.2 * torch.randn(WIDTH)) * factor)
            norm.bias.copy_(0.3 * torch.randn(WIDTH) * factor)
            reader.weight.div_(factor)
        factor = torch.exp(spread * torch.randn(WIDTH))
        made.block.qkv.weight[2 * WIDTH :].mul_(factor[:, None])
        made.block.qkv.bias[2 * WIDTH :].mul_(factor)
        made.block.proj.weight.div_(factor)
    return made


def images() -> Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def error(model: nn.Module) -> float:
    """Mean squared error of the output that 8 bits cause."""
    x, quantized = images(), copy.deepcopy(model)
    tops.quantize_(quantized, tops.plan(quantized, tops.TernaryConfig("int8")))
    tops.calibrate(quantized, [x], "minmax")
    with torch.no_grad():
        return float((quantized(x) - model(x)).square().mean())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("act", "free"), [("gelu", 4 * WIDTH), ("relu", 6 * WIDTH)])
@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_factors_go_through_norms_and_values(
    act: str, free: int, fused: bool, smoothing: float | None
) -> None:
    model, x = net(act, fused, spread=1.0), images()
    kept = {name: p.clone() for name, p in model.named_parameters()}
    before = model(x).detach()
    found = equalize_(model, [x], smoothing=smoothing)
    # norm1, norm2 and norm, values; fc1 only where what stands behind it passes factors on
    assert found.channels == free and found.after < found.before
    assert (model(x).detach() - before).abs().max() / before.abs().max() < 1e-5
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, kept[n])}
    assert {"block.norm1.weight", "block.norm1.bias", "block.qkv.weight", "head.weight"} <= changed
    assert ("block.fc2.weight" in changed) == (act == "relu")
    queries = slice(0, 2 * WIDTH)
    for name in ("block.qkv.bias", "block.fc1.bias"):
        own, old = dict(model.named_parameters())[name], kept[name]
        assert torch.equal(own[queries], old[queries]) or act == "relu"


@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_uneven_channels_cost_no_more_than_even_ones(smoothing: float | None) -> None:
    even, uneven = net(), net(spread=2.0)
    torch.testing.assert_close(even(images()), uneven(images()), rtol=1e-4, atol=1e-4)
    worst, best = error(uneven), error(even)
    assert worst > 5 * best
    equalize_(uneven, [images()], smoothing=smoothing)
    assert error(uneven) < 1.5 * best


def test_smoothquants_factors_are_its_formula() -> None:
    model, x = net(spread=1.0), images()
    read: list[Tensor] = []
    handle = model.block.fc1.register_forward_pre_hook(lambda m, given: read.append(given[0]))
    model(x)
    handle.remove()
    weight = model.block.fc1.weight.detach().clone()
    old = model.block.norm2.weight.detach().clone()
    equalize_(model, [x], smoothing=0.7)
    found = model.block.norm2.weight / old
    largest = read[0].detach().abs().amax((0, 1))
    torch.testing.assert_close(found, weight.abs().amax(0) ** 0.3 / largest**0.7)


def test_what_mixes_tokens_keeps_its_scale() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.tokens, self.fc = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
            return self.fc(x + y)

    model, x = Mixer().eval(), torch.randn(6, 8, 8)
    before = model(x)
    assert equalize_(model, [x]).channels == 0
    assert torch.equal(model(x), before)


def test_other_strengths_are_refused() -> None:
    with pytest.raises(BadConfig, match="smoothing"):
        equalize_(net(), [images()], smoothing=1.5)

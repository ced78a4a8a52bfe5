# SPDX-License-Identifier: Apache-2.0
"""The default plan of networks that mix tokens: what stays at 8 bits is found by structure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.budget import Budget
from ternary_ops.models import Spach, SpachConfig
from ternary_ops.models.spach_networks import Stage

MIXES = "mixes tokens: one weight for every channel"


def reasons(model: nn.Module, example: Tensor | None = None) -> dict[str, str]:
    made = tops.plan(model, tops.TernaryConfig(zeros=0.9), example=example)
    assert all(row.action == ("int8" if row.reason else "ternary") for row in made)
    return {row.name: row.reason for row in made}


@pytest.mark.parametrize("with_example", [False, True])
def test_token_mlps_stay_at_8_bits_and_attention_becomes_ternary(with_example: bool) -> None:
    stages: tuple[Stage, ...] = ((("conv", 1), ("mlp", 1)), (("attention", 1),))
    model = Spach(SpachConfig(8, stages, 4, heads=2, num_classes=5, image_size=32))
    found = reasons(model, torch.randn(1, 3, 32, 32) if with_example else None)
    mixing = [f"stages.0.blocks.1.spatial.fc{i}" for i in (1, 2)]
    dense = {"stem.proj": "first convolution", "head": "last linear layer"}
    dense |= dict.fromkeys(mixing, MIXES)
    dense |= {n: "depthwise" for n in found if n.endswith("bypass")}
    assert {n: r for n, r in found.items() if r} == dense
    ternary = {n.split("blocks.0.")[-1] for n, r in found.items() if not r}
    assert {"spatial.qkv", "spatial.proj", "channel.fc1", "channel.fc2"} <= ternary


class Body(nn.Module):
    """Tokens of an image, something that mixes them, and a classifier."""

    def __init__(self, mix: Callable[[nn.Linear, Tensor], Tensor], tokens: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.own, self.fc = nn.Linear(tokens, tokens), nn.Linear(8, 8)
        self.head, self.mix = nn.Linear(8, 5), mix

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).flatten(2).transpose(1, 2)
        y = y + self.mix(self.own, self.norm(y))
        out: Tensor = self.head((y + F.gelu(self.fc(y))).mean(1))
        return out


def gated(layer: nn.Linear, y: Tensor) -> Tensor:
    """gMLP's spatial gate."""
    u, v = torch.cat([y, y], -1).chunk(2, dim=-1)
    return u * layer(v.transpose(-1, -2)).transpose(-1, -2)


MIXING: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "transpose": lambda layer, y: layer(y.transpose(1, 2)).transpose(1, 2),
    "permute": lambda layer, y: torch.relu(layer(y.permute(0, 2, 1))).permute([0, 2, 1]),
    "mT": lambda layer, y: layer(y.mT).mT,
    "gate": gated,
    "map": lambda layer, y: layer(y.mT.reshape(-1, 8, 4, 4).flatten(2)).mT,
    "addcmul": lambda layer, y: layer(torch.addcmul(y, y, y, value=2).mT).mT,
    "there, back and there": lambda layer, y: layer(y.mT.transpose(1, 2).contiguous().mT).mT,
}


@pytest.mark.parametrize("name", MIXING)
def test_every_spelling_of_mixing_is_seen(name: str) -> None:
    found = reasons(Body(MIXING[name]))
    assert found["own"] == MIXES and found["fc"] == "" and found["head"] == "last linear layer"


OVER_CHANNELS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "plain": lambda layer, y: layer(y),
    "there and back": lambda layer, y: layer(y.transpose(1, 2).relu().transpose(1, 2)),
    "map": lambda layer, y: layer(y.reshape(-1, 4, 4, 8)).reshape(-1, 16, 8),
    "squeeze": lambda layer, y: y * layer(y.mT.reshape(-1, 8, 4, 4).mean((2, 3))).unsqueeze(1),
    "pool": lambda layer, y: (
        y * layer(F.adaptive_avg_pool2d(y.mT.reshape(-1, 8, 4, 4), 1).flatten(1)).unsqueeze(1)
    ),
    "class token": lambda layer, y: y + layer(y[:, 0])[:, None],
    "heads": lambda layer, y: layer(
        F.scaled_dot_product_attention(*(y.reshape(-1, 16, 2, 4).transpose(1, 2),) * 3)
        .transpose(1, 2)
        .reshape(-1, 16, 8)
    ),
}


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_what_runs_over_channels_is_not_taken_for_mixing(name: str) -> None:
    found = reasons(Body(OVER_CHANNELS[name], tokens=8))
    assert found["own"] == found["fc"] == "" and found["head"] == "last linear layer"


def test_every_classifier_of_several_is_the_last_layer() -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.fc(x)
            return (self.one(y[:, 0]) + self.other(y[:, 1])) / 2

    last = "last linear layer"
    assert reasons(Distilled()) == {"fc": "", "one": last, "other": last}


def test_a_sum_that_ends_a_network_makes_no_block_a_classifier() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x

    assert [bool(reason) for reason in reasons(Stream()).values()] == [False, False, True]


def test_a_budget_serves_networks_whose_norms_are_weights_of_their_own() -> None:
    torch.manual_seed(0)
    stages: tuple[Stage, ...] = ((("conv", 1), ("attention", 1)),)
    model = Spach(SpachConfig(8, stages, 4, heads=2, num_classes=5, image_size=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(4, 3, 16, 16)
    config, budget = tops.TernaryConfig(zeros=0.9), Budget(bytes=7000)
    made = tops.plan(model, config, auto=True, budget=budget, batches=[x], example=x[:1])
    chosen = [row.name for row in made if row.reason.startswith("auto")]
    assert {"stages.0.blocks.1.spatial.qkv", "stages.0.blocks.1.channel.fc2"} <= set(chosen)

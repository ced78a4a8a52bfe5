# SPDX-License-Identifier: Apache-2.0
"""Small networks of the families that lose filters, and channels of them to keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from channel_networks import network
from torch import Tensor, nn

from ternary_ops import models, sr
from ternary_ops.models.mobilenet import InvertedResidual
from ternary_ops.models.regnet import RegNet
from ternary_ops.prune import FilterGroup, groups


class Squeezed(nn.Module):
    """An EfficientNet block: expansion, depthwise, a gate of the whole image, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (8, 24, 24, 8))
        self.up, self.down = nn.Conv2d(8, 24, 1, bias=False), nn.Conv2d(24, 8, 1, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.reduce, self.expand = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norms[0](self.stem(x)))
        y = F.silu(self.norms[2](self.depthwise(F.silu(self.norms[1](self.up(x))))))
        gate = torch.sigmoid(self.expand(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        x = x + self.norms[3](self.down(y * gate))
        return self.head(x.mean((2, 3)))


class Next(nn.Module):
    """ConvNeXt: a stream under LayerNorm, blocks with hidden units, a scale a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.depthwise = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1, groups=12) for _ in "ab")
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in "ab")
        self.up = nn.ModuleList(nn.Linear(12, 32) for _ in "ab")
        self.down = nn.ModuleList(nn.Linear(32, 12) for _ in "ab")
        self.gamma = nn.Parameter(torch.rand(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for depthwise, norm, up, down in zip(
            self.depthwise, self.norms, self.up, self.down, strict=True
        ):
            y = norm(depthwise(x).permute(0, 2, 3, 1))
            x = x + (self.gamma * down(F.gelu(up(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class Upwards(nn.Module):
    """A small U: transposed convolutions beside skips, a depthwise layer of two filters a channel,
    rows that become an image (Torch-Pruning#99, #125), one output channel (#179).
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.two, self.norm = nn.Conv2d(16, 32, 3, padding=1, groups=16), nn.BatchNorm2d(32)
        self.grouped = nn.ConvTranspose2d(32, 16, 2, 2, groups=2)
        self.up, self.slopes = nn.ConvTranspose2d(24, 8, 4, 2, 1), nn.PReLU(8)
        self.global_, self.fold = nn.Linear(8, 6 * 16), nn.ConvTranspose2d(6, 8, 4, 8)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.norm(self.two(F.relu(self.b(a)))))
        y = self.slopes(self.up(torch.cat([F.relu(self.grouped(b)), a], 1)))
        z = F.relu(self.global_(y.mean((2, 3)))).view(y.shape[0], -1, 4, 4)
        return self.last(y + F.pad(F.relu(self.fold(z)), (0, 4, 0, 4)))


class Signal(nn.Module):
    """Conv1d and a flattened signal (Torch-Pruning#451), two branches joined last (#481)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 12, 3, padding=1), nn.Conv1d(12, 8, 3, groups=2, padding=1)
        self.norm, self.wide = nn.BatchNorm1d(12), nn.Linear(8 * 16, 12)
        self.deep, self.inner = nn.Linear(8 * 16, 9), nn.BatchNorm1d(9)
        self.last = nn.Linear(21, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.norm(self.a(x.flatten(2)[..., :16])))))
        y = y.flatten(1)
        return self.last(torch.concat([self.wide(y), F.relu(self.inner(self.deep(y)))], dim=-1))


def vit() -> nn.Module:
    """A class token, places of tokens, attention and hidden units."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, 8)
            self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), _parameter(1, 17, 8)
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
            self.up, self.down, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
            n, length, c = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, c)
            x = x + self.proj(y)
            x = x + self.down(F.gelu(self.up(self.norm2(x))))
            return self.head(x[:, 0])

    return Net()


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def mobilenet() -> nn.Module:
    """MobileNetV2 in small: a stage without expansion, one of two blocks, Dropout before the end."""
    stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
    blocks = [(12, 8, 1, 1), (8, 16, 4, 2), (16, 16, 4, 1)]
    trunk = [InvertedResidual(i, o, expand, stride, 3) for i, o, expand, stride in blocks]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 5)]
    return nn.Sequential(stem, *trunk, *end)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: models.cifar_resnet(8, width=8),
    "mobilenet": mobilenet,
    "regnet": lambda: RegNet((1, 1), (16, 32), 8, 5),
    "efficientnet": Squeezed,
    "fmen": lambda: sr.FMEN(2, 8, branch=4, warmup=4, pairs=1, up=(2, 1)),
    "concat": lambda: network(2, "dense", "residual", "pixels"),
    "convnext": Next,
    "upwards": Upwards,
    "signal": Signal,
    "vit": vit,
}


def family(name: str, seed: int = 0) -> nn.Module:
    """Such a network in float64, with statistics, shifts and scales that are not the first ones."""
    torch.manual_seed(seed)
    model = FAMILIES[name]()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            shape = module.running_mean.shape  # type: ignore[union-attr]
            module.running_mean, module.running_var = torch.randn(shape), torch.rand(shape) + 0.5
            module.weight.data, module.bias.data = torch.rand(shape) + 0.5, torch.randn(shape)
    return model.double().eval()


def picture(name: str) -> Tensor:
    """An input of such a network."""
    size = 32 if name in ("vit", "upwards") else 16
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)


def some(model: nn.Module, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Random channels of every free group, as many of each part."""
    generator = torch.Generator().manual_seed(seed)
    free = [g for g in groups(model, x) if g.fixed is None and g.width > g.parts]
    return {g.name: _share(g, generator) for g in free}


def _share(group: FilterGroup, generator: torch.Generator) -> Tensor:
    each = group.width // group.parts
    count = int(torch.randint(1, each, (), generator=generator))
    found = []
    for part in range(group.parts):
        mine = (torch.from_numpy(group.labels) == part).nonzero().flatten()
        found.append(mine[torch.randperm(each, generator=generator)[:count]])
    return torch.cat(found)

# SPDX-License-Identifier: Apache-2.0
"""Small networks for the tests of compile, in the spellings people use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.runtime import Program


def ready(
    model: nn.Module, x: Tensor, rules: dict[str, Any] | None = None, **config: Any
) -> nn.Module:
    """Give BatchNorm statistics, quantize every layer and calibrate on x."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn_like(x).repeat(4, *[1] * (x.ndim - 1)))
    settings = tops.TernaryConfig(**{"zeros": 0.0, **config})
    tops.quantize_(model, tops.plan(model, settings, rules=rules))
    tops.calibrate(model, [x, torch.randn_like(x)], method="minmax")
    return model.eval()


def chain() -> nn.Sequential:
    """One layer after the other: the network computes exactly what its program does."""
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, stride=2, padding=1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 14, 3, padding=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(14),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Conv2d(14, 14, 3, padding="same", groups=14),
        nn.Hardtanh(-2.0, 2.0),
        nn.Flatten(),
        nn.Linear(14 * 9, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


class TorchvisionBlock(nn.Module):
    """A bottleneck as torchvision writes it: one in-place ReLU, `out += identity`."""

    def __init__(self, i: int, width: int, stride: int = 1) -> None:
        super().__init__()
        o = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(i, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, o, 1, bias=False), nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or i != o:
            shortcut = nn.Conv2d(i, o, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TorchvisionNet(nn.Module):
    """Stem, max pool, three bottlenecks, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(
            TorchvisionBlock(8, 4), TorchvisionBlock(16, 4), TorchvisionBlock(16, 6, 2)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.blocks(self.pool(self.stem(x))))
        return self.fc(torch.flatten(x, 1))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU first: no layer can take these BatchNorms in."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out if isinstance(self.shortcut, nn.Conv2d) else x)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return out + shortcut


class PreActNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActBlock(8, 8), PreActBlock(8, 12), PreActBlock(12, 12))
        self.bn, self.fc = nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))
        return self.fc(F.avg_pool2d(x, 4, ceil_mode=True).mean(dim=(2, 3)))


class Spellings(nn.Module):
    """The same few operations as functions, methods and in-place forms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.c, self.fc = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8 * 4, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y = self.b(x).clamp(min=-1.0, max=2.0)
        y = y.add(F.max_pool2d(x, 3, 1, padding=1))
        y += x
        y = F.relu6(torch.add(y, self.b(x)))
        z = F.hardtanh(self.c(y), -3.0, 3.0).relu_()
        z = F.dropout(z, training=self.training).contiguous()
        z = F.adaptive_avg_pool2d(z, 2)
        z = z.view(z.size(0), -1)
        z = F.relu(self.fc(z), inplace=True)
        return self.out(z.reshape(z.shape[0], -1)).flatten(1)


class Reused(nn.Module):
    """One convolution called twice, so its BatchNorm does not fold; one value read by two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = F.relu(self.bn(self.conv(x)))
        y = F.relu(self.bn(self.conv(y)) + x)
        return self.last(y) + self.last(x)


class Aliased(nn.Module):
    """An in-place ReLU changes what the skip connection adds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True)
        self.skip, self.next = nn.Identity(), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        skip = self.skip(x)
        return self.next(self.act(x)) + skip


def error(program: Program, model: nn.Module, x: Tensor) -> float:
    """Relative to how much the output varies."""
    with torch.no_grad():
        expected = model(x.clone()).numpy()
    got = program(x.numpy())
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected - expected.mean()))


def images(*shape: int, seed: int = 0) -> Tensor:
    """Normal values [N, C, H, W]."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers_of(model: nn.Module) -> Sequence[nn.Module]:
    """The trainable quantized layers, in order."""
    return [m for m in model.modules() if isinstance(m, tops.nn.TernaryLayer)]

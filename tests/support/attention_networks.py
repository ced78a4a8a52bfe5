# SPDX-License-Identifier: Apache-2.0
"""Small networks of our own with what attention and gates are made of, as people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Behind(nn.Module):
    """A function behind a convolution to 12 channels, with parameters of its own."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 12, 3, padding=1), function
        self.own = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x), *self.own)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Of three heads, over tokens; fused: by PyTorch's own function."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.conv, self.fused = nn.Conv2d(3, 12, 3, padding=1), fused
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)
        self.cls = nn.Parameter(torch.randn(1, 1, 12))
        self.bias = nn.Parameter(torch.randn(3, 49, 49))

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.conv(x))
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        n, length, c = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        else:
            x = ((q * 0.5) @ k.transpose(-2, -1) + self.bias).softmax(-1) @ v
        return self.out(x.transpose(1, 2).reshape(n, length, c))


class Split(nn.Module):
    """Two groups of channels weighted by a softmax between them (ResNeSt)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.down, self.up = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 12, 1)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        both = x.reshape(n, 2, c // 2, h, w)
        gate = self.up(F.relu(self.down(both.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, 2, c // 2, 1, 1)
        return self.last((both * gate).sum(1))


class Linear(nn.Module):
    """Attention without a softmax, whose products are taken the other way (EfficientViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, _, h, w = x.shape
        q, k, v = x.reshape(n, -1, 12, h * w).transpose(-1, -2).chunk(3, dim=-1)
        q, k = F.relu(q), F.relu(k)
        made = q @ (k.transpose(-1, -2) @ v)
        made = made / ((k.sum(-2, keepdim=True) * q).sum(-1, keepdim=True) + 1)
        return made.transpose(-1, -2).reshape(n, -1, h, w)


class Crossed(nn.Module):
    """Attention between channels (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 36)
        self.heat = nn.Parameter(torch.rand(3, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.conv(x))
        n, length, c = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 3, 4).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        x = ((q @ k.transpose(-2, -1)) * self.heat).softmax(-1) @ v
        return x.permute(0, 3, 1, 2).reshape(n, length, c)


def response(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Global response normalization (ConvNeXt V2)."""
    x = x.permute(0, 2, 3, 1)
    size = x.norm(p=2, dim=(1, 2), keepdim=True)
    x = x + torch.addcmul(bias, weight, x * (size / (size.mean(-1, keepdim=True) + 1e-6)))
    return x.permute(0, 3, 1, 2)


def context(x: Tensor, weight: Tensor) -> Tensor:
    """The mean over pixels, weighted by a softmax (GCNet)."""
    n, c = x.shape[:2]
    shares = F.conv2d(x, weight).reshape(n, 1, -1).softmax(-1).unsqueeze(3)
    return x + (x.reshape(n, c, -1).unsqueeze(1) @ shares).view(n, c, 1, 1)


def heads_innermost(x: Tensor) -> Tensor:
    """Attention among pixels whose heads alternate along the channels (LeViT)."""
    n, _, h, w = x.shape
    q = x.reshape(n, 4, 3, h * w).permute(0, 2, 3, 1)
    y = (q @ q.transpose(-1, -2) * 0.5).softmax(-1) @ q
    return y.transpose(1, 2).reshape(n, h * w, 12)


# Of any image size.
ANY: dict[str, Callable[[], nn.Module]] = {
    "channels": lambda: Behind(lambda x: x * x.mean(1, keepdim=True) - x.amin((1, 3), True)),
    "spatial attention": lambda: Behind(
        lambda x: x * torch.cat([x.mean(1, True), x.max(1, keepdim=True)[0]], 1).sum(1, True)
    ),
    "deviation": lambda: Behind(lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1e-3)),
    "tokens": lambda: Behind(lambda x: torch.std(tokens(x), 2)),
    "normalize": lambda: Behind(lambda x: F.normalize(tokens(x), dim=-1)),
    "logarithms": lambda: Behind(
        lambda x: F.log_softmax(x.mean((2, 3)), 1) + torch.logsumexp(x, (2, 3))
    ),
    "functions": lambda: Behind(
        lambda x: (
            1 / (1 + x**2) + (2 - x) ** 3 + torch.maximum(x, 0.5 * x) * torch.rsqrt(x.abs() + 1)
        )
    ),
    "factors": lambda: Behind(lambda x, a, b: F.relu(x * a + b), (12, 1, 1), (1, 12, 1, 1)),
    "coordinates": lambda: Behind(
        lambda x: x * F.adaptive_avg_pool2d(x, (None, 1)) * F.adaptive_avg_pool2d(x, (1, None))
    ),
    "two pools": lambda: Behind(
        lambda x: F.adaptive_max_pool2d(x, 1) + F.adaptive_avg_pool2d(x, 1)
    ),
    "split": Split,
    "response": lambda: Behind(response, (1, 1, 1, 12), (1, 1, 1, 12)),
}

# Of images of 6 x 8.
SIZED: dict[str, Callable[[], nn.Module]] = {
    "columns": lambda: Behind(lambda x: x.softmax(3) + x.log_softmax(2)),
    "positions": lambda: Behind(lambda x, p, g: (tokens(x) + p) * g, (1, 48, 12), (12,)),
    "offsets": lambda: Behind(lambda x, p: F.relu(x + p), (1, 12, 6, 8)),
    "attention": lambda: Attention(False),
    "fused attention": lambda: Attention(True),
    "heads innermost": lambda: Behind(heads_innermost),
    "context": lambda: Behind(context, (1, 12, 1, 1)),
    "linear attention": Linear,
    "crossed": Crossed,
    "einsum": lambda: Behind(
        lambda x: torch.einsum("bchw,bdhw->bcd", x, 2 * x) @ torch.bmm(x.flatten(2), tokens(x))
    ),
    "mixing": lambda: Behind(lambda x, w: F.gelu(w @ x.flatten(2)), (5, 12)),
}


def sample(seed: int, n: int = 2, h: int = 6, w: int = 8) -> Any:
    """A batch of images."""
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(seed))

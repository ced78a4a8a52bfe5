# SPDX-License-Identifier: Apache-2.0
"""Layers of SPACH networks: the mixing block and what it mixes with, patch embedding, downsampling.

Maps of tokens are [N, H, W, C] between the layers: a token is a pixel whose channels come last, so
LayerNorm and the channel MLP read rows, and a convolution reads the same memory as channels-last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
LAYER_SCALE = 1e-4
_DEEP_WIDTH = 64  # channels within the deep patch embedding


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of a map: [N, H, W, C] -> [N, H, W, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """softmax(q k / sqrt(d)) v of every head, projected."""
        n, h, w, c = x.shape
        heads = self.qkv(x).reshape(n, h * w, 3, self.heads, c // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.proj(y.reshape(n, h, w, c))
        return out


class TokenMLP(nn.Module):
    """Two linear layers over the tokens of a map, the same for all channels; `tokens` is fixed."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tokens, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] with H * W = tokens -> the same shape."""
        n, h, w, c = x.shape
        y = x.reshape(n, h * w, c).transpose(1, 2)
        made: Tensor = self.fc2(self.act(self.fc1(y)))
        return made.transpose(1, 2).reshape(n, h, w, c)


class ChannelMLP(nn.Module):
    """Two linear layers over the channels of each token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class DropPath(nn.Module):
    """Stochastic depth: in training a branch is 0 for a share `rate` of the samples, and the others
    are scaled so that the mean stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x, or x with samples set to 0."""
        if not self.training:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate."""
        return f"{self.rate}"


class MixingBlock(nn.Module):
    """The block of SPACH: spatial mixing, a depthwise bypass beside it, then a channel MLP.

        y = x + drop_path(layer_scale * spatial(norm1(x))) + bypass(x)
        z = y + drop_path(channel(norm2(y)))

    spatial: Attention, TokenMLP, or None for a convolutional block, which mixes by its bypass
    alone. bypass: a 3x3 depthwise convolution that reads the block's input as it is, neither
    normalized nor scaled nor dropped; None leaves it out.
    """

    def __init__(
        self, width: int, hidden: int, spatial: nn.Module | None, bypass: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.spatial = spatial
        self.norm1 = None if spatial is None else nn.LayerNorm(width, EPS)
        scale = None if spatial is None else nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.layer_scale = scale
        self.bypass = nn.Conv2d(width, width, 3, padding=1, groups=width) if bypass else None
        self.norm2 = nn.LayerNorm(width, EPS)
        self.channel = ChannelMLP(width, hidden)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N, H, W, C]."""
        y = x
        if self.spatial is not None and self.norm1 is not None:
            y = y + self.drop_path(self.layer_scale * self.spatial(self.norm1(x)))
        if self.bypass is not None:
            y = y + self.bypass(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = y + self.drop_path(self.channel(self.norm2(y)))
        return out

    def remove_spatial_(self) -> None:
        """Leave the bypass and the channel MLP: a convolutional block."""
        self.spatial = self.norm1 = self.layer_scale = None


class PatchEmbedding(nn.Module):
    """[N, in_channels, H, W] -> tokens [N, H / patch, W / patch, width].

    deep: four convolutions (7x7 stride 2, twice 3x3, then patch / 2) in place of one.
    """

    def __init__(self, in_channels: int, width: int, patch: int, deep: bool) -> None:
        super().__init__()
        self.proj: nn.Module
        if not deep:
            self.proj = nn.Conv2d(in_channels, width, patch, patch)
            return
        layers: list[nn.Module] = []
        for inputs, kernel, stride in ((in_channels, 7, 2), (_DEEP_WIDTH, 3, 1)):
            for _ in range(1 if kernel == 7 else 2):
                conv = nn.Conv2d(inputs, _DEEP_WIDTH, kernel, stride, kernel // 2, bias=False)
                layers += [conv, nn.BatchNorm2d(_DEEP_WIDTH), nn.ReLU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(_DEEP_WIDTH, width, patch // 2, patch // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens."""
        y: Tensor = self.proj(x).permute(0, 2, 3, 1)
        return y


class Downsample(nn.Module):
    """Half the height and width, twice the channels: a 2x2 convolution, then GroupNorm of one group
    (over the whole map of a sample)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 2, 2, bias=False)
        self.norm = nn.GroupNorm(1, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N, H / 2, W / 2, 2 C]."""
        y: Tensor = self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return y

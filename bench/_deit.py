# SPDX-License-Identifier: Apache-2.0
"""DeiT-tiny (arXiv 2012.12877), written here: a vision transformer with a class token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.models.spach_layers import ChannelMLP, DropPath

WIDTH, DEPTH, HEADS = 192, 12, 3
EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention over tokens [N, L, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        n, tokens, c = x.shape
        heads = self.qkv(x).reshape(n, tokens, 3, HEADS, c // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        made: Tensor = self.proj(y.reshape(n, tokens, c))
        return made


class Block(nn.Module):
    """Attention and a channel MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH, EPS), Attention()
        self.norm2, self.channel = nn.LayerNorm(WIDTH, EPS), ChannelMLP(WIDTH, 4 * WIDTH)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        made: Tensor = x + self.drop_path(self.channel(self.norm2(x)))
        return made


class DeiT(nn.Module):
    """float32 [N, 3, S, S] -> logits [N, classes]; 5.7 M parameters with 1000 classes and patches
    of 16 of 224 pixels.
    """

    def __init__(self, classes: int, size: int, patch: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, WIDTH))
        rates = [drop_path * i / (DEPTH - 1) for i in range(DEPTH)]
        self.blocks = nn.Sequential(*(Block(rate) for rate in rates))
        self.norm, self.head = nn.LayerNorm(WIDTH, EPS), nn.Linear(WIDTH, classes)
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = self.stem(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.class_token.expand(x.shape[0], -1, -1), y], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(y))[:, 0])
        return logits


@torch.no_grad()
def at_size(model: DeiT, size: int, enlarged: int = 1) -> DeiT:
    """A copy for images of another size: positions are interpolated.

    enlarged: for images whose pixels were repeated so many times along both axes; patches are as
    much larger then, and the network computes what it did before on the smaller ones.
    """
    classes, patch = model.head.out_features, model.stem.kernel_size[0]
    made = DeiT(classes, size, enlarged * patch).eval()
    state = dict(model.state_dict())
    weight = state["stem.weight"] / enlarged**2
    state["stem.weight"] = weight.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    table = state["positions"][:, 1:]
    side, wanted = round(table.shape[1] ** 0.5), size // (enlarged * patch)
    grid = table.transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, (wanted, wanted), mode="bicubic", align_corners=False)
    rest = grid.flatten(2).transpose(1, 2)
    state["positions"] = torch.cat([state["positions"][:, :1], rest], 1)
    made.load_state_dict(state)
    return made

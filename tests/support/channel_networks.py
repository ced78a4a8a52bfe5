# SPDX-License-Identifier: Apache-2.0
"""Random networks of blocks that tie channels in different ways, and a change of their order."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.layout.channel_groups import ChannelGroup, Use

WIDTH = 8


def conv(i: int, o: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, **options)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = conv(WIDTH, 6), nn.BatchNorm2d(6)
        self.second, self.slopes = conv(6, WIDTH), nn.PReLU(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.slopes(self.second(F.relu(self.norm(self.first(x)))) + x)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depthwise = conv(WIDTH, 12, 1), conv(12, 12, groups=12)
        self.narrow = conv(12, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.narrow(F.hardswish(self.depthwise(F.relu6(self.wide(x)))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = conv(WIDTH, 12), conv(12, 8, groups=2)
        self.last = conv(8, WIDTH, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.grouped(F.relu(self.first(x)))))


class Dense(nn.Module):
    """Concatenations, a slice of a concatenation, one value twice in another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(WIDTH, 5), conv(WIDTH + 5, 6)
        self.last = conv(WIDTH + 4 + 6 + 6, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, F.relu(self.first(x))], 1)
        y = F.leaky_relu(self.second(both), 0.1)
        return self.last(torch.cat([both[:, : WIDTH + 4], y, y], dim=1))


class Shuffled(nn.Module):
    """As ShuffleNetV2 splits, joins and shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = conv(WIDTH // 2, 6), conv(WIDTH // 2 + 6, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat([F.relu(self.conv(a)), b], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
        return self.last(y)


class Gated(nn.Module):
    """A gate for each channel, one for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.squeeze, self.excite = conv(WIDTH, WIDTH), conv(8, 4, 1), conv(4, 8, 1)
        self.pixel = conv(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return torch.sigmoid(self.pixel(x)) * y + F.max_pool2d(x, 3, 1, 1)


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = conv(4 * WIDTH, 12), conv(3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.body(F.pixel_unshuffle(x, 2)))
        return self.last(F.gelu(F.pixel_shuffle(y, 2)))


class Norms(nn.Module):
    """Norms over groups, images and channels; a scale a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group = conv(WIDTH, 8), nn.GroupNorm(2, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.layer, self.hidden, self.back = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.gamma = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.instance(F.silu(self.group(self.a(x)))).permute(0, 2, 3, 1)
        y = self.back(F.gelu(self.hidden(self.layer(y))))
        return x + self.gamma * y.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Heads of tokens, by matrix products or torch's own operator."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.norm = fused, nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).reshape(n, h * w, 3, 3, 4).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * 0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        tokens = tokens + self.proj(y.transpose(1, 2).reshape(n, h * w, 12))
        return tokens.transpose(1, 2).reshape(n, c, h, w)


BLOCKS: dict[str, Any] = {
    "residual": Residual,
    "depthwise": Depthwise,
    "grouped": Grouped,
    "dense": Dense,
    "shuffled": Shuffled,
    "gated": Gated,
    "pixels": Pixels,
    "norms": Norms,
    "matmul": lambda: Attention(False),
    "attention": lambda: Attention(True),
}


class Network(nn.Module):
    """A stem, blocks, and a linear layer behind a flattened image or a mean."""

    def __init__(self, blocks: list[str], flattened: bool) -> None:
        super().__init__()
        self.stem, self.flattened = conv(3, WIDTH), flattened
        self.blocks = nn.Sequential(*(BLOCKS[name]() for name in blocks))
        self.hidden, self.last = nn.Linear(WIDTH * (16 if flattened else 1), 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.stem(x)))
        if self.flattened:
            y = torch.flatten(F.avg_pool2d(y, 2), 1)
        else:
            y = y.mean(dim=(2, 3))
        return self.last(F.relu(self.hidden(y)))


def network(seed: int, *blocks: str) -> Network:
    """Of these blocks, or of three at random, in float64, statistics of norms included."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    model = Network(list(blocks) or draw.sample(list(BLOCKS), 3), draw.random() < 0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.randn(6), torch.rand(6) + 0.5
        for parameter in module._parameters.values():
            if parameter is not None and parameter.ndim == 1:
                parameter.data = torch.rand_like(parameter) + 0.2
    return model.double().eval()


def image(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)


def random_order(group: ChannelGroup, seed: int) -> Any:
    """An order of the group's channels that differs from theirs wherever labels let it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(group.labels)
    order = torch.arange(len(labels))
    for label in labels.unique():
        mine = (labels == label).nonzero().flatten()
        order[mine] = mine[torch.randperm(len(mine), generator=generator)].roll(1)
    return order.numpy()


@torch.no_grad()
def apply_order_(model: nn.Module, group: ChannelGroup, order: Any, uses: tuple[Use, ...]) -> None:
    """Give these parameters the group's channels in another order."""
    for use in uses:
        full = torch.from_numpy(group.order_of(use.value, order))
        path, _, name = str(use.owner).rpartition(".")
        owner: Any = getattr(model.get_submodule(path), name)
        if use.role == "consumer":
            parts = owner.weight.unflatten(0, (use.groups, -1))
            local = full.view(use.groups, -1) % parts.shape[2]
            owner.weight.copy_(
                torch.cat([part[:, at] for part, at in zip(parts, local, strict=True)])
            )
        elif isinstance(owner, Tensor):
            owner.copy_(owner.flatten()[full].view_as(owner))
        else:
            for tensor in (*owner._parameters.values(), *owner._buffers.values()):
                if tensor is not None and tensor.ndim:
                    tensor.copy_(tensor[full])

# SPDX-License-Identifier: Apache-2.0
"""FMEN: fast and memory-efficient network (Du et al., NTIRE 2022, arXiv 2204.08397).

Topology, sizes and names of FMEN-S are those of the published code. The sizes of the full FMEN are
not published: `FMEN_FULL` is a guess whose parameters and products come within 0.1 % of the paper's
table, not the authors' configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops import ops
from ternary_ops.errors import BadConfig, need
from ternary_ops.sr.models.attention import parameters, runs_fused
from ternary_ops.sr.models.base import SRNetwork, conv, shuffle_tail
from ternary_ops.sr.models.reparam import RRRB, Conv3x3, Kernel

SLOPE = 0.1  # of every leaky ReLU

# Table 3 of the paper: 748, 757 and 769 thousand parameters for x2, x3 and x4; this one has 748.1,
# 756.8 and 768.9.
FMEN_FULL: dict[str, Any] = {
    "channels": 64,
    "branch": 16,
    "warmup": 16,
    "pairs": 6,
    "up": [2, *[3] * 6],
}


class ERB(nn.Module):
    """Two convolutions, a leaky ReLU between them."""

    def __init__(self, channels: int, train: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            RRRB(channels) if train else Conv3x3(channels, channels) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        y: Tensor = self.conv2(F.leaky_relu(self.conv1(x), SLOPE))
        return y


class HFAB(nn.Module):
    """High-frequency attention block: x times the sigmoid of a narrow branch, [N, C, H, W].

    While it trains, BatchNorm stands before and after the branch's first and last convolution;
    folded, it is gone. A map that BatchNorm has shifted is surrounded by what the norm makes of 0
    by its running statistics, as in the published code, so that folding is exact at the border: in
    training mode a border sees running statistics, the rest those of the batch. fused: see
    sr.fuse_attention_.
    """

    fused = False

    def __init__(self, channels: int, branch: int, blocks: int, train: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels) if train else None
        self.squeeze = nn.Conv2d(channels, branch, 3, padding=0 if train else 1)
        self.convs = nn.ModuleList(ERB(branch, train) for _ in range(blocks))
        self.bn2 = nn.BatchNorm2d(branch) if train else None
        self.excitate = nn.Conv2d(branch, channels, 3, padding=0 if train else 1)
        self.bn3 = nn.BatchNorm2d(channels) if train else None

    def forward(self, x: Tensor) -> Tensor:
        """x times its mask."""
        if self.fused and self.bn1 is None:
            layers = _branch(self)
            if runs_fused(layers, x):
                return ops.hf_attention(x, *parameters(layers), _slopes(self))
        y = x if self.bn1 is None else _ringed(self.bn1, x)
        y = F.leaky_relu(self.squeeze(y), SLOPE)
        for block in self.convs:
            y = block(y)
        y = F.leaky_relu(y, SLOPE)
        y = self.excitate(y if self.bn2 is None else _ringed(self.bn2, y))
        return x * torch.sigmoid(y if self.bn3 is None else self.bn3(y))

    @torch.no_grad()
    def fold_(self) -> None:
        """Take the norms into the convolutions, in place, in float64."""
        if self.bn1 is None or self.bn2 is None or self.bn3 is None:
            return
        _scale_inputs(self.squeeze, self.bn1)
        _scale_inputs(self.excitate, self.bn2)
        scale, shift = (t.double() for t in affine(self.bn3))
        weight, bias = self.excitate.weight, cast(Tensor, self.excitate.bias)
        weight.copy_(weight.double() * scale[:, None, None, None])
        bias.copy_(bias.double() * scale + shift)
        self.bn1 = self.bn2 = self.bn3 = None
        self.squeeze.padding = self.excitate.padding = (1, 1)


def _scale_inputs(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """The norm in front of a convolution becomes part of it."""
    scale, shift = (t.double() for t in affine(norm))
    weight, bias = layer.weight.double(), cast(Tensor, layer.bias)
    bias.copy_(bias.double() + weight.sum((2, 3)) @ shift)
    layer.weight.copy_(weight * scale[:, None, None])


def _ringed(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """norm(x), surrounded by one pixel of norm(0)."""
    y = norm(x)
    n, c, h, w = y.shape
    ring = affine(norm)[1].to(y.dtype)[:, None, None]
    row, column = ring.expand(n, c, 1, w), ring.expand(n, c, h + 2, 1)
    return torch.cat([column, torch.cat([row, y, row], 2), column], 3)


def affine(norm: nn.BatchNorm2d) -> Kernel:
    """Scale and shift [C] of a BatchNorm in eval mode."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    return scale, norm.bias - mean * scale


class FMEN(SRNetwork):
    """x [N, C, H, W] in 0..255 -> [N, C, scale*H, scale*W], not clamped; any size.

    channels, branch, warmup: of the trunk, of the attention branches and of the first of these; 50,
    16 and 12 in FMEN-S. pairs: of ERB and HFAB. up: ERBs of each HFAB, the first one's first.
    train: with branches, for training; `sr.fold` makes the deploy network of it.
    """

    family = "FMEN"
    trunk = "HFABs"
    ends = "head", "tail.0"
    input_range = 255.0

    def __init__(
        self,
        scale: int = 4,
        channels: int = 50,
        branch: int = 16,
        warmup: int = 12,
        pairs: int = 4,
        up: Sequence[int] = (2, 1, 1, 1, 1),
        train: bool = False,
        image_channels: int = 3,
    ) -> None:
        super().__init__(scale, image_channels)
        if len(up) != pairs + 1:
            do = "Give one for the warm-up block and one for each pair."
            raise BadConfig(need(f"up as {pairs + 1} counts", list(up), do))
        self.head = conv(image_channels, channels, 3)
        self.warmup = nn.Sequential(
            conv(channels, channels, 3), HFAB(channels, warmup, up[0], train)
        )
        self.ERBs = nn.ModuleList(ERB(channels, train) for _ in range(pairs))
        self.HFABs = nn.ModuleList(HFAB(channels, branch, blocks, train) for blocks in up[1:])
        self.lr_conv = conv(channels, channels, 3)
        self.tail = shuffle_tail(channels, scale, image_channels)

    @property
    def radius(self) -> int:
        """One pixel for each 3x3 convolution on the longest path."""
        blocks = [len(b.convs) for b in (self.warmup[1], *self.HFABs)]
        return 4 + 2 * len(self.ERBs) + sum(2 + 2 * count for count in blocks)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        x0 = self.head(x)
        h = self.warmup(x0)
        for erb, hfab in zip(self.ERBs, self.HFABs, strict=True):
            h = hfab(erb(h))
        y: Tensor = self.tail(self.lr_conv(h) + x0)
        return y


@torch.no_grad()
def balance_(network: FMEN, images: Tensor, most: float = 512.0) -> None:
    """Scale the maps of attention branches to fit float16, in place; outputs keep their bits.

    The published FMEN-S has values up to 2e7 there, where float16 ends at 65,504. Leaky ReLU keeps
    positive factors, so every convolution of a branch can be divided by a power of two that the
    next one takes back.

    network: folded. images: float [N, C, H, W] in 0..255; their largest value on each map becomes
    at most `most`. Raises BadConfig for a network with training branches.
    """
    seen: dict[nn.Module, float] = {}
    chains = [_branch(block) for block in _blocks(network)]
    hooks = [
        layer.register_forward_hook(
            lambda module, args, y: seen.update({module: float(y.abs().max())})
        )
        for chain in chains
        for layer in chain
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    for chain in chains:
        before = 1.0
        for layer in chain[:-1]:
            factor = 2.0 ** max(0, math.ceil(math.log2(max(seen[layer], 1e-30) / most)))
            layer.weight.mul_(before / factor)
            cast(Tensor, layer.bias).div_(factor)
            before = factor
        chain[-1].weight.mul_(before)


@torch.no_grad()
def to_unit_range_(network: FMEN) -> None:
    """Let a folded network take images of 0..255/256 in place of 0..255, in place.

    All it computes is divided by 256, and so what comes out: the same bits but for the exponent.
    Only the masks stay, whose last convolutions take the factor back. Weights and maps then are of
    the size that the learning rates of other networks are made for. Raises BadConfig for a network
    with training branches or another range.
    """
    if network.input_range != 255.0:
        do = "It was rescaled before."
        raise BadConfig(need("a network of range 255 for to_unit_range_", network.input_range, do))
    last = {_branch(block)[-1] for block in _blocks(network)}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer not in last:
            cast(Tensor, layer.bias).div_(256)
        elif isinstance(layer, nn.Conv2d):
            layer.weight.mul_(256)
    network.input_range = 255 / 256


def _blocks(network: FMEN) -> tuple[HFAB, ...]:
    """The attention blocks of a folded network."""
    blocks = (network.warmup[1], *network.HFABs)
    for block in blocks:
        if block.bn1 is not None:
            got, do = "training branches", "Call sr.fold first."
            raise BadConfig(need("a folded network", got, do))
    return blocks


def _slopes(block: HFAB) -> list[float]:
    """Of the leaky ReLU after each convolution of a branch but the last; 1.0: none."""
    slopes = [SLOPE]
    for _ in block.convs:
        slopes += [SLOPE, 1.0]
    return [*slopes[:-1], slopes[-1] * SLOPE]


def _branch(block: HFAB) -> list[nn.Conv2d]:
    """Convolutions of a folded attention branch, first to last."""
    inner = [
        conv3x3.rep_conv
        for erb in block.convs
        for conv3x3 in (cast(Conv3x3, erb.conv1), cast(Conv3x3, erb.conv2))
    ]
    return [block.squeeze, *inner, block.excitate]

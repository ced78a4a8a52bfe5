# SPDX-License-Identifier: Apache-2.0
"""An FMEN with fewer channels in its trunk: those that its output misses least."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ternary_ops import sr
from ternary_ops.prune import FilterGroup, groups, remove_


def trunk(network: sr.FMEN, x: Tensor) -> list[FilterGroup]:
    """The groups of the trunk: channels that the attention blocks' branches, which are narrower,
    do not have.

    Raises ValueError for branches as wide as the trunk.
    """
    width = network.head.out_channels
    blocks = [network.warmup[1], *network.HFABs]
    if any(block.squeeze.out_channels == width for block in blocks):
        raise ValueError("need branches narrower than the trunk")
    return [g for g in groups(network, x[:1]) if g.width == width and g.fixed is None]


@torch.no_grad()
def narrowed(network: sr.SRNetwork, channels: int, x: Tensor) -> sr.FMEN:
    """The network, folded, without those channels whose absence changes its output for x [N, 3, H,
    W] least in the mean square: a quarter of them at a time, group by group of layers that share
    them.
    """
    if not isinstance(network, sr.FMEN) or len(network.tail) != 2:
        raise TypeError("need an FMEN that enlarges in one step")
    network = copy.deepcopy(network).eval()
    target = network(x)
    left = {}
    for group in trunk(network, x):
        readers = [network.get_submodule(name) for name in group.consumers]
        kept = list(range(group.width))
        at_once = max(1, (len(kept) - channels) // 4)
        while len(kept) > channels:
            losses = {c: _loss_without(network, readers, c, x, target) for c in kept}
            spare = sorted(kept, key=losses.__getitem__)[: min(at_once, len(kept) - channels)]
            for reader in readers:
                reader.weight[:, spare] = 0
            kept = [c for c in kept if c not in spare]
        left[group.name] = kept
    remove_(network, x[:1], left, round_to=1)
    return network


def _loss_without(
    network: nn.Module, readers: list[nn.Module], channel: int, x: Tensor, target: Tensor
) -> float:
    before = [reader.weight[:, channel].clone() for reader in readers]
    for reader in readers:
        reader.weight[:, channel] = 0
    loss = float((network(x) - target).square().mean())
    for reader, weights in zip(readers, before, strict=True):
        reader.weight[:, channel] = weights
    return loss

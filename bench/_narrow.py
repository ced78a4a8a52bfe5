# SPDX-License-Identifier: Apache-2.0
"""An FMEN with fewer channels in its trunk."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ternary_ops import sr
from ternary_ops.graph.channels import channel_groups
from ternary_ops.graph.trace import trace


class Shared(NamedTuple):
    """Layers that make the same channels, and those that read them."""

    makers: tuple[str, ...]
    readers: tuple[str, ...]


def groups(network: sr.FMEN, x: Tensor) -> list[Shared]:
    """Of the trunk: channels that the attention blocks' branches, which are narrower, do not have.

    Raises ValueError for branches as wide as the trunk.
    """
    width = network.head.out_channels
    blocks = [network.warmup[1], *network.HFABs]
    if any(block.squeeze.out_channels == width for block in blocks):
        raise ValueError("need branches narrower than the trunk")
    found = channel_groups(trace(network), x[:1]).groups()
    return [
        Shared(*(tuple(str(use.owner) for use in uses) for uses in (g.producers, g.consumers)))
        for g in found
        if len(g) == width and "removal" not in g.fixed
    ]


@torch.no_grad()
def narrowed(network: sr.SRNetwork, channels: int, x: Tensor) -> sr.FMEN:
    """The network, folded, without those channels whose absence changes its output for x [N, 3, H,
    W] least in the mean square: a quarter of them at a time, group by group of layers that share
    them.
    """
    if not isinstance(network, sr.FMEN) or len(network.tail) != 2:
        raise TypeError("need an FMEN that enlarges in one step")
    network = copy.deepcopy(network)
    target = network(x)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for group in groups(network, x):
        readers = [network.get_submodule(name) for name in group.readers]
        kept = list(range(readers[0].weight.shape[1]))
        at_once = max(1, (len(kept) - channels) // 4)
        while len(kept) > channels:
            losses = {c: _loss_without(network, readers, c, x, target) for c in kept}
            spare = sorted(kept, key=losses.__getitem__)[: min(at_once, len(kept) - channels)]
            for reader in readers:
                reader.weight[:, spare] = 0
            kept = [c for c in kept if c not in spare]
        for name in group.makers:
            state[f"{name}.weight"] = state[f"{name}.weight"][kept]
            state[f"{name}.bias"] = state[f"{name}.bias"][kept]
        for name in group.readers:
            state[f"{name}.weight"] = state[f"{name}.weight"][:, kept]
    branch, warmup = (b.squeeze.out_channels for b in (network.HFABs[0], network.warmup[1]))
    up = [len(block.convs) for block in (network.warmup[1], *network.HFABs)]
    narrow = sr.FMEN(network.scale, channels, branch, warmup, len(network.ERBs), up)
    narrow.input_range = network.input_range
    narrow.load_state_dict(state)
    return narrow.eval()


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

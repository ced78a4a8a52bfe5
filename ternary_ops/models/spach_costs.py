# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-adds of SPACH networks by part."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch

from ternary_ops.compiler.work import count_macs
from ternary_ops.graph.trace import trace
from ternary_ops.models.spach_networks import Spach

# Part of a layer by a piece of its name; what has none of them is a normalization or layer scale.
_PARTS = {
    "stem.": "stem", "downsample.conv": "downsample", "spatial.": "spatial", "bypass": "bypass",
    "channel.": "channel MLP", "head": "head",
}  # fmt: skip
_PRODUCTS, _NORMS = "attention products", "norms"


class Cost(NamedTuple):
    """parameters, and multiply-adds for one image."""

    parameters: int
    macs: int


def costs_by_part(network: Spach, image_size: int | None = None) -> dict[str, Cost]:
    """What each part costs for an image of image_size (that of the config by default).

    "attention products" are those of queries with keys and of scores with values, which have no
    weights. Shared parameters count once, their multiply-adds as often as they run. Multiply-adds
    are those of convolutions, linear layers and these products.
    """
    twin = copy.deepcopy(network).to("meta").eval()
    size = image_size or network.config.image_size
    x = torch.empty(1, network.config.in_channels, size, size, device="meta")
    traced = trace(twin)
    count_macs(traced, x)
    found = {name: [0, 0] for name in (*_PARTS.values(), _PRODUCTS, _NORMS)}
    for name, parameter in network.named_parameters():
        found[_part(name)][0] += parameter.numel()
    for node in traced.graph.nodes:
        macs = node.meta.get("macs", 0)
        part = _part(str(node.target)) if node.op == "call_module" else _PRODUCTS
        found[part][1] += int(macs)
    return {name: Cost(*pair) for name, pair in found.items()}


def _part(name: str) -> str:
    return next((part for piece, part in _PARTS.items() if piece in name), _NORMS)

# SPDX-License-Identifier: Apache-2.0
"""Removed channels are gone: the narrower network computes what the wide one does with those maps
at zero, trains on, and its optimizer and Pruner go on by value.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from channel_networks import image, network
from torch import Tensor, nn

from ternary_ops.prune import FilterGroup, groups, remove_


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


def zeroed(model: nn.Module, x: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    """The network's output with what reads channels that go reading nothing of them: their weights
    are zero there. Maps behind norm and activation might as well be zero.
    """
    found = {g.name: g for g in groups(model, x)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, index in kept.items():
            gone = torch.ones(found[name].width, dtype=torch.bool)
            gone[index] = False
            for place in found[name].places:
                if place.role != "consumer":
                    continue
                weight = model.get_submodule(place.layer).weight
                inputs, rows = weight.shape[1], weight.shape[0] // place.parts
                for position in torch.from_numpy(place.positions)[gone].flatten().tolist():
                    part = position // inputs
                    weight[part * rows : (part + 1) * rows, position % inputs] = 0
        y = model(x)
    model.load_state_dict(before)
    return y


BLOCKS = [
    ("residual", "depthwise", "grouped"),
    ("dense", "pixels"),
    ("norms", "attention"),
    ("shuffled", "matmul", "residual"),
]


@pytest.mark.parametrize("blocks", BLOCKS, ids="-".join)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_narrow_network_computes_what_the_masked_one_does(
    blocks: tuple[str, ...], seed: int
) -> None:
    model, x = network(seed, *blocks), image()
    kept = some(model, x, seed)
    wanted = zeroed(model, x, kept)
    assert (model(x) - wanted).abs().max() > 1e-3
    made = remove_(model, x, kept, round_to=1)
    torch.testing.assert_close(model(x), wanted, rtol=1e-9, atol=1e-9)
    assert made.parameters[0] > made.parameters[1] == sum(p.numel() for p in model.parameters())
    assert made.multiply_adds[0] > made.multiply_adds[1]

# SPDX-License-Identifier: Apache-2.0
"""Removed channels are gone: the narrower network computes what the wide one does with those maps
at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from channel_networks import image, network
from filter_networks import FAMILIES, family, picture, some
from torch import Tensor, nn

from ternary_ops.prune import Removal, groups, remove_

X = picture("resnet")


def unread(model: nn.Module, x: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    """The network's output where no layer reads of channels that go: its weights are zero there.

    What reads a map at zero, behind norm and activation, computes the same.
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
                weight: Any = model.get_submodule(place.layer).weight
                inputs, rows = weight.shape[1], weight.shape[0] // place.parts
                positions = torch.from_numpy(place.positions)[gone].flatten().tolist()
                if isinstance(model.get_submodule(place.layer), nn.ConvTranspose2d):
                    weight[positions] = 0
                    continue
                for position in positions:
                    part = position // inputs
                    weight[part * rows : (part + 1) * rows, position % inputs] = 0
        y: Tensor = model(x)
    model.load_state_dict(before)
    return y


def check(model: nn.Module, x: Tensor, seed: int = 0) -> Removal:
    kept = some(model, x, seed)
    before, wanted = model(x), unread(model, x, kept)
    assert (before - wanted).abs().max() > 1e-3 * wanted.abs().max()
    made = remove_(model, x, kept, round_to=1)
    assert (model(x) - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert made.parameters[0] > made.parameters[1] == sum(p.numel() for p in model.parameters())
    assert made.multiply_adds[0] > made.multiply_adds[1]
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrow_network_computes_what_it_did_with_maps_at_zero(name: str) -> None:
    check(family(name), picture(name))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "blocks",
    [
        ("residual", "depthwise", "grouped"),
        ("gated", "norms"),
        ("attention", "dense"),
        ("shuffled", "matmul", "residual"),
    ],
    ids="-".join,
)
def test_so_does_any_mixture_of_blocks(blocks: tuple[str, ...], seed: int) -> None:
    check(network(seed, *blocks), image(), seed)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "regnet"])
def test_streams_of_whole_stages_get_narrower(name: str) -> None:
    model = family(name)
    streams = [g for g in groups(model, X) if len(g.producers) > 1]
    assert streams and all(g.fixed is None for g in streams)
    made = remove_(model, X, {g.name: range(g.width // 2) for g in streams})
    assert {row[0] for row in made.rows} == {g.name for g in streams}
    for group in streams:
        widths = {len(model.get_submodule(layer).weight) for layer in group.producers}  # type: ignore[arg-type]
        assert widths == {group.width // 2}


def test_modules_say_their_new_sizes() -> None:
    model = family("regnet")
    remove_(model, X, {g.name: range(0, g.width, 2) for g in groups(model, X) if not g.fixed})
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            assert module.weight.shape == shape
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.num_features == len(module.weight) == len(module.running_mean)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
    model = family("mobilenet")
    remove_(model, X, {g.name: range(0, g.width, 2) for g in groups(model, X) if not g.fixed})
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert depthwise and all(m.groups == m.in_channels == len(m.weight) for m in depthwise)


def test_what_is_fixed_says_why() -> None:
    found = {g.name: g.fixed or "" for g in groups(family("convnext"), X)}
    assert "LayerNorm takes the mean over channels" in found["stem"]
    assert not found["up.0"] and not found["up.1"]
    assert found["head"] == "the output of the network"
    found = {g.name: g.fixed or "" for g in groups(family("vit"), picture("vit"))}
    assert not found["up"] and all(found[name] for name in found if name != "up")
    assert "reshape" in found["qkv"]
    found = {g.name: g.fixed or "" for g in groups(network(0, "norms"), image())}
    assert "GroupNorm takes the mean" in found["blocks.0.a"]
    text = str(groups(family("convnext"), X))
    assert "LayerNorm takes the mean over channels" in text and "up.0" in text


def test_widths_are_rounded_up_by_the_strongest_filters() -> None:
    model = family("resnet")
    with torch.no_grad():
        model.layer1[0].conv1.weight[5] *= 100  # type: ignore[union-attr, index]
    made = remove_(model, X, {"layer1.0.conv1": [0, 2, 7], "layer2.0.conv1": range(13)})
    assert made.kept["layer1.0.conv1"].tolist() == [0, 2, 5, 7]
    assert made.rows == (("layer1.0.conv1", 8, 4),)
    assert len(made.kept["layer2.0.conv1"]) == 16


def test_parts_of_a_grouped_layer_keep_as_many_channels_each() -> None:
    model = family("regnet")
    name = next(g.name for g in groups(model, X) if g.parts == 2 and g.width == 16)
    made = remove_(model, X, {name: [0, 1, 2, 9]}, round_to=1)
    kept = made.kept[name]
    assert len(kept) == 6 and int((kept < 8).sum()) == 3 and {0, 1, 2, 9} <= set(kept.tolist())


def test_the_same_removal_narrows_a_copy() -> None:
    one, other = family("mobilenet"), family("mobilenet")
    made = remove_(one, X, some(one, X))
    again = remove_(other, X, made.kept)
    assert again.rows == made.rows and torch.equal(one(X), other(X))
    assert "parameters" in str(made) and made.rows[0][0] in str(made)

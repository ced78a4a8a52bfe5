# SPDX-License-Identifier: Apache-2.0
"""The model of costs over widths, the errors of removed channels, and the choice between them."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import ternary_ops as tops
from ternary_ops.budget.cost_model import CostModel, Measured, fit
from ternary_ops.budget.output_errors import OutputProbe
from ternary_ops.budget.space import GroupOptions, LayerOptions, Space
from ternary_ops.budget.width_features import LayerWidths
from ternary_ops.prune.filters import FilterGroups


class Reading(nn.Module):
    """Channels read by a plain, a grouped and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(16, 8, 1, groups=4)
        self.last = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last((self.second(x) + self.grouped(x)).flatten(1))


@pytest.fixture
def reading() -> tuple[nn.Module, torch.Tensor, FilterGroups]:
    torch.manual_seed(3)
    model, x = Reading().eval(), torch.randn(6, 3, 4, 4)
    with torch.no_grad():
        model.norm.bias.uniform_(-0.5, 0.5)
    return model, x, tops.prune.groups(model, x[:1])


def test_widths_of_layers_are_those_of_the_network_with_channels_removed(
    reading: tuple[nn.Module, torch.Tensor, FilterGroups],
) -> None:
    model, x, groups = reading
    names = ["first", "second", "grouped", "last"]
    sizes = LayerWidths(groups)
    inner, outer = groups[0].name, groups[1].name
    kept = {inner: [0, 1, 4, 5, 8, 9, 12, 13], outer: [0, 2, 4, 6]}
    narrow = copy.deepcopy(model)
    tops.prune.remove_(narrow, x[:1], kept, round_to=1)
    for name in names:
        whole, left = (m.get_submodule(name).weight for m in (model, narrow))
        found = sizes.features(name, {inner: 8, outer: 4})
        shares = [b / a for a, b in zip(whole.shape[:2], left.shape[:2], strict=True)]
        # Grouped layers keep all groups: filters and inputs of each get fewer.
        np.testing.assert_allclose(found, [1, *shares, shares[0] * shares[1]])
    assert sizes.layers(inner) == ["first", "norm", "second", "grouped"]
    assert 0 < sizes.traffic({inner: 8}) < sizes.traffic({}) == 1


def test_the_error_of_a_removal_is_that_of_the_network_without_the_channels(
    reading: tuple[nn.Module, torch.Tensor, FilterGroups],
) -> None:
    model, x, groups = reading
    probe = OutputProbe(model, [x[:4], x[4:]])
    for group, kept in ((groups[0], [0, 1, 4, 5, 8, 9, 12, 13]), (groups[1], [0, 3, 4, 7])):
        narrow = copy.deepcopy(model)
        tops.prune.remove_(narrow, x[:1], {group.name: kept}, round_to=1)
        outputs = []
        for network in (model, narrow):
            network = copy.deepcopy(network)
            network.norm.train()
            with torch.no_grad():
                outputs.append(torch.cat([network(part) for part in (x[:4], x[4:])]).double())
        cosine = torch.cosine_similarity(outputs[0].flatten(), outputs[1].flatten(), 0)
        wanted = float(1 / cosine.square() - 1)
        assert wanted > 1e-3
        assert probe.without(group, torch.tensor(kept)) == pytest.approx(wanted, rel=1e-4)
    # Nothing stays changed.
    assert probe.without(groups[0], torch.arange(16)) == pytest.approx(0, abs=1e-12)


def synthetic(seed: int) -> tuple[Space, LayerWidths]:
    """Three layers in a row, with two groups between them."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )
    groups = tops.prune.groups(model, torch.randn(1, 3, 9, 9)).free
    names = ["0", "2", "4"]
    sizes = LayerWidths(groups)
    shares = np.array([0.0, 0.5, 0.9])
    parts = {
        name: {
            kind: (shares, np.outer(1 - shares * 0.9, rng.uniform(0.1, 2, 4) * slow))
            for kind, slow in (("ternary", 1.0), ("int8", 1.5))
        }
        for name in names
    }
    costs = CostModel(parts, np.array([0.1, 0.4]), sizes)
    layers = []
    for name in names:
        configs = [tops.TernaryConfig(k, zeros=z) for k in ("ternary", "int8") for z in shares]
        errors = np.sort(rng.uniform(0, 1, (2, 3)), 1) * [[1.0], [0.5]]
        layers.append(LayerOptions(name, configs, [*shares, *shares], errors.flatten()))
    options = [
        GroupOptions(g.name, [16, 12, 8, 4], [0.0, *np.sort(rng.uniform(0.1, 2, 3)).tolist()])
        for g in groups
    ]
    return Space(layers, options, costs), sizes


@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_near_the_best_of_all_networks(seed: int) -> None:
    space, sizes = synthetic(seed)
    everything = []
    for widths in itertools.product((16, 12, 8, 4), repeat=2):
        at = dict(zip(space.groups, widths, strict=True))
        error = sum(g.errors[g.widths.index(at[name])] for name, g in space.groups.items())
        rows = [
            [
                (space.costs.layer(name, c.weights, c.zeros, at), float(e))
                for c, e in zip(layer.configs, layer.errors, strict=True)
            ]
            for name, layer in space.layers.items()
        ]
        for choice in itertools.product(*rows):
            cost = space.costs.others(at) + sum(c for c, _ in choice)
            everything.append((cost, error + sum(e for _, e in choice)))
    least, most = min(c for c, _ in everything), max(c for c, _ in everything)
    assert space.least() == pytest.approx(least)
    errors = []
    for limit in np.linspace(least * 1.05, most, 9):
        design = space.best(float(limit))
        assert design is not None and design.cost <= limit + 1e-9
        best = min(e for c, e in everything if c <= limit)
        errors.append(design.error - best)
        assert -1e-9 <= errors[-1] <= 1.0  # a step of one layer
    assert np.mean(errors) < 0.15
    assert space.best(least * 0.99) is None


def test_costs_between_widths_that_were_measured_are_found() -> None:
    space, sizes = synthetic(1)
    known = space.costs
    first, second = space.groups
    settings = [{}, {first: 12, second: 12}, {first: 8, second: 8}, {first: 4, second: 4}]
    settings += [{first: 8}, {second: 8}]

    def measured(widths: dict[str, int]) -> Measured:
        layers = {
            name: {
                kind: [(z, known.layer(name, kind, z, widths)) for z in (0.0, 0.5, 0.9)]
                for kind in ("ternary", "int8")
            }
            for name in space.layers
        }
        return Measured(layers, known.others(widths))

    found = fit([(widths, measured(widths)) for widths in settings], sizes)
    at = {first: 4, second: 12}
    for name in space.layers:
        for kind, zeros in (("ternary", 0.25), ("int8", 0.7)):
            wanted = known.layer(name, kind, zeros, at)
            assert found.layer(name, kind, zeros, at) == pytest.approx(wanted, rel=0.02)
    assert found.others(at) == pytest.approx(known.others(at), rel=0.02)
    choices = dict.fromkeys(space.layers, ("int8", 0.5))
    slower = {name: 1.4 * found.layer(name, "int8", 0.5, at) for name in space.layers}
    better = found.corrected(slower, 2 * found.others(at), choices, at)
    assert better.layer("2", "int8", 0.5, at) == pytest.approx(slower["2"])
    assert better.others(at) == pytest.approx(2 * found.others(at))

# SPDX-License-Identifier: Apache-2.0
"""Pruning in one go: removal costs against brute force, refits against least squares."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel
from ternary_ops.prune.layer_matrix import LayerMatrix
from ternary_ops.prune.obs import damped, inverse_of, removal

LAYERS: list[tuple[nn.Module, tuple[int, ...], int]] = [
    (nn.Conv2d(6, 5, 3, padding=1), (2, 6, 7, 5), 4),
    (nn.Conv2d(8, 4, (1, 3), stride=2, padding=(0, 1), dilation=(1, 2)), (2, 8, 6, 9), 4),
    (nn.Conv2d(12, 6, 3, groups=2, padding="same"), (1, 12, 5, 6), 2),
    (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 6), 1),
    (nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect"), (2, 5, 6, 6), 4),
    (nn.Linear(10, 7), (3, 2, 10), 4),
]


@pytest.mark.parametrize(("layer", "shape", "unit"), LAYERS)
def test_rows_times_columns_is_the_layer(layer: Any, shape: tuple[int, ...], unit: int) -> None:
    matrix = LayerMatrix(layer, unit)
    x = torch.randn(shape)
    rows = matrix.rows(layer.weight.detach())
    assert torch.equal(matrix.weight(rows).float(), layer.weight.detach())
    made = (rows @ matrix.columns(x).double()).flatten(0, 1)  # [O, columns]
    wanted = layer(x).detach()
    wanted = wanted.flatten(0, -2).T if wanted.ndim == 3 else wanted.movedim(1, 0).flatten(1)
    bias = layer.bias.detach()[:, None]
    torch.testing.assert_close(made.float() + bias, wanted, rtol=1e-5, atol=1e-5)
    squares = layer(x).detach().square()
    per_filter = matrix.per_filter(squares).flatten()
    torch.testing.assert_close(per_filter, wanted.square().sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", [1, 4])
def test_costs_are_those_of_least_squares(unit: int) -> None:
    """The first unit to go costs what the best refit without it loses, and is the cheapest."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(12, 50, generator=rng, dtype=torch.float64)
    rows = torch.randn(3, 12, generator=rng, dtype=torch.float64)
    gram = damped(x @ x.T / 50, 1e-6)
    costs = removal(rows, inverse_of(gram[None]), torch.zeros(3, dtype=torch.int64), unit)
    for filter_, found in zip(rows, costs, strict=True):
        lost = []
        for u in range(12 // unit):
            keep = [k for k in range(12) if k // unit != u]
            best = torch.linalg.solve(gram[keep][:, keep], gram[keep] @ filter_)
            change = filter_.clone()
            change[keep] -= best
            lost.append(float(change @ gram @ change))
        first = int(np.argmin(lost))
        assert int(found.argmin()) == first
        assert float(found.min()) == pytest.approx(lost[first], rel=1e-3)


def test_the_order_beats_magnitude_and_is_near_the_best_pair() -> None:
    rng = torch.Generator().manual_seed(2)
    mix = torch.randn(8, 8, generator=rng, dtype=torch.float64)
    gram = mix @ mix.T / 8 + 0.05 * torch.eye(8, dtype=torch.float64)
    rows = torch.randn(20, 8, generator=rng, dtype=torch.float64)

    def lost(w: Tensor, gone: set[int]) -> float:
        keep = [k for k in range(8) if k not in gone]
        change = w.clone()
        change[keep] -= torch.linalg.solve(gram[keep][:, keep], gram[keep] @ w)
        return float(change @ gram @ change)

    costs = removal(rows, inverse_of(gram[None]), torch.zeros(20, dtype=torch.int64), 1)
    ours = [
        lost(w, set(c.argsort(stable=True)[:4].tolist())) for w, c in zip(rows, costs, strict=True)
    ]
    small = [lost(w, set(w.abs().argsort()[:4].tolist())) for w in rows]
    best = [min(lost(w, set(s)) for s in itertools.combinations(range(8), 4)) for w in rows]
    assert sum(ours) < 0.95 * sum(small)
    assert sum(ours) < 1.5 * sum(best)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c = nn.Conv2d(16, 8, 1, bias=False)
        self.d = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x))))
        result: Tensor = self.d(F.relu(self.c(y)).mean((2, 3)))
        return result


def batches() -> list[Tensor]:
    return [torch.randn(4, 3, 12, 12) for _ in range(4)]


@pytest.mark.parametrize("pattern", ["1x4", "element"])
def test_a_float_model_keeps_more_than_by_magnitude(pattern: str) -> None:
    torch.manual_seed(0)
    dense, data = Net(), batches()
    by_size, ours = copy.deepcopy(dense), copy.deepcopy(dense)
    rows = tops.prune.reconstruct_(ours, data, 0.6, pattern, skip="a")
    tops.prune.Pruner(by_size, "one_shot", 1, 0.6, pattern, skip="a").step()
    units = {"1x4": (9 * 4 * 16, 4 * 8, 2 * 5), "element": (9 * 256, 128, 40)}[pattern]
    empty = sum(round(r.measured * n) for r, n in zip(rows, units, strict=True))
    assert empty == round(0.6 * sum(units))
    assert torch.equal(ours.a.weight, dense.a.weight)
    test = torch.randn(32, 3, 12, 12)
    wanted = dense(test).detach()
    lost = [float((m(test).detach() - wanted).square().mean()) for m in (ours, by_size)]
    assert lost[0] < 0.35 * lost[1]


def test_nothing_pruned_gives_the_dense_weights_back() -> None:
    torch.manual_seed(0)
    model = Net().double()
    before = copy.deepcopy(model)
    tops.prune.reconstruct_(model, [x.double() for x in batches()], 0.0, damp=1e-9)
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_a_pruner_goes_on_from_the_masks(weights: str) -> None:
    torch.manual_seed(0)
    model = Net()
    config = tops.TernaryConfig(weights, zeros=0.5, pattern="1x4")
    tops.quantize_(model, tops.plan(model, config, skip=["a", "d"]))
    model.train()
    tops.prune.reconstruct_(model, batches())
    assert model.training and model.b.phase == "ternary"
    masks = [model.b.mask.clone(), model.c.mask.clone()]
    assert not bool(model.b.weight[~masks[0]].any())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = tops.prune.Pruner(model, total_steps=5, optimizer=optimizer)
    assert pruner.zeros == 0.5
    for x in batches():
        model(x).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert torch.equal(model.b.mask, masks[0]) and torch.equal(model.c.mask, masks[1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8).double(), nn.Linear(8, 8).double()
        self.b.weight, self.b.bias = self.a.weight, self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) + self.b(x)
        return y


def test_a_bias_that_tied_layers_share_takes_up_the_mean_once() -> None:
    torch.manual_seed(0)
    model, x = Tied(), 3 + torch.randn(64, 8, dtype=torch.float64)
    wanted = model(x).detach().mean(0)
    tops.prune.reconstruct_(model, [x], 0.5, "1x4")
    torch.testing.assert_close(model(x).detach().mean(0), wanted, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused_and_leaves_the_model_alone() -> None:
    model = Net()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    reconstruct = tops.prune.reconstruct_
    for pattern in ("2x4", "filter"):
        with pytest.raises(BadConfig, match="one output channel"):
            reconstruct(model, batches(), 0.5, pattern)
    with pytest.raises(BadConfig, match="damp"):
        reconstruct(model, batches(), 0.5, damp=0.0)
    with pytest.raises(UnsupportedModel, match="at least one sample"):
        reconstruct(model, [], 0.5)
    with pytest.raises(BadWeights, match="into a"):
        reconstruct(model, [torch.full((1, 3, 8, 8), float("nan"))], 0.5)
    idle = Net()
    idle.e = nn.Linear(3, 3)
    with pytest.raises(UnsupportedModel, match=r"\['e'\]"):
        reconstruct(idle, batches(), 0.5)

    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, batches(), 0.5, on_layer=stop)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])

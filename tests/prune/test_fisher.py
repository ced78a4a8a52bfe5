# SPDX-License-Identifier: Apache-2.0
"""Pruning by the empirical Fisher matrix, and the optimal brain surgeon under it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, BadWeights, TernaryOpsError, UnsupportedModel
from ternary_ops.nn.patterns import unit_sums
from ternary_ops.prune.fisher_blocks import Blocks, fisher_inverse, slopes_of
from ternary_ops.prune.obs import damped, inverse_of, refit, removal, surgery

Batches = list[tuple[Tensor, Tensor]]


def quadratic(seed: int, depth: int, rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Linear regression: inputs [N, K], weights [rows, K], and the Hessian of the mean square."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(5 * depth, depth, generator=rng, dtype=torch.float64).cumsum(1)
    return x, torch.randn(rows, depth, generator=rng, dtype=torch.float64), 2 * x.T @ x / len(x)


def loss_of(x: Tensor, rows: Tensor, w: Tensor) -> Tensor:
    return (x @ (w - rows).T).square().mean(0)


@pytest.mark.parametrize("unit", [1, 4])
def test_costs_are_what_the_loss_of_a_linear_regression_rises_by(unit: int) -> None:
    x, rows, hessian = quadratic(unit, 24)
    inverse, which = inverse_of(hessian)[None], torch.zeros(3, dtype=torch.int64)
    costs = removal(rows, inverse, which, unit) / 2
    order = costs.argsort(1)
    for count in (1, 2, 24 // unit - 1):
        gone = torch.zeros_like(costs, dtype=torch.bool).scatter(1, order[:, :count], True)
        kept = ~gone.repeat_interleave(unit, 1)
        made = surgery(rows, inverse, which, kept)
        rise = loss_of(x, rows, made)
        assert not bool(made[~kept].any())
        # The best loss that any values of the survivors reach.
        for row, mask, found in zip(rows, kept, rise, strict=True):
            best = torch.linalg.lstsq(x[:, mask], (x @ row)[:, None])
            missed = (x[:, mask] @ best.solution[:, 0] - x @ row).square().mean()
            torch.testing.assert_close(found, missed, rtol=1e-6, atol=1e-12)
        again = refit(hessian[None], which, rows @ hessian, kept)
        torch.testing.assert_close(again, made, rtol=1e-6, atol=1e-9)
        told = costs.gather(1, order[:, :count]).sum(1).double()
        if count == 1:
            torch.testing.assert_close(told, rise, rtol=1e-4, atol=1e-9)
        assert bool((told >= rise * (1 - 1e-3)).all())  # costs are made to rise along the order


@pytest.mark.parametrize("unit", [1, 4])
def test_removal_is_never_worse_than_by_magnitude(unit: int) -> None:
    for seed in range(25):
        x, rows, hessian = quadratic(seed, 16)
        inverse, which = inverse_of(hessian)[None], torch.zeros(3, dtype=torch.int64)
        size = rows.square().view(3, -1, unit).sum(2)
        for count in (1, 16 // unit // 2):
            costs = removal(rows, inverse, which, unit)
            kept = [
                ~torch.zeros_like(size, dtype=torch.bool)
                .scatter(1, values.argsort(1)[:, :count], True)
                .repeat_interleave(unit, 1)
                for values in (costs, size)
            ]
            ours = loss_of(x, rows, surgery(rows, inverse, which, kept[0]))
            same = loss_of(x, rows, surgery(rows, inverse, which, kept[1]))
            by_size = loss_of(x, rows, rows * kept[1])
            assert bool((ours <= by_size * (1 + 1e-9)).all())
            assert bool((same <= by_size * (1 + 1e-9)).all())


@pytest.mark.parametrize("unit", [1, 4])
def test_with_the_identity_it_is_magnitude(unit: int) -> None:
    rows = torch.randn(5, 16, dtype=torch.float64)
    one, which = torch.eye(16, dtype=torch.float64)[None], torch.zeros(5, dtype=torch.int64)
    costs = removal(rows, one, which, unit)
    size = rows.square().view(5, -1, unit).sum(2)
    known = costs.isfinite()
    torch.testing.assert_close(costs[known].double(), size[known], rtol=1e-5, atol=1e-6)
    kept = torch.rand(5, 16) < 0.5
    assert torch.equal(surgery(rows, one, which, kept), rows * kept)


@pytest.mark.parametrize(("samples", "size"), [(7, 40), (300, 200), (50, 200), (3, 1)])
def test_the_inverse_is_the_dense_one_and_that_of_the_recursion(samples: int, size: int) -> None:
    slopes = torch.randn(samples, 2, size, dtype=torch.float64)
    found = fisher_inverse(slopes, 1e-2)
    for b, made in enumerate(found):
        g = slopes[:, b]
        eye = torch.eye(size, dtype=torch.float64)
        torch.testing.assert_close(made, torch.linalg.inv(g.T @ g / samples + 1e-2 * eye))
        known = eye / 1e-2  # sample by sample, as Singh and Alistarh write it
        for row in g:
            product = known @ row
            known = known - torch.outer(product, product) / (samples + row @ product)
        torch.testing.assert_close(made, known, rtol=1e-8, atol=1e-8)


class Net(nn.Module):
    """Convolutions, plain, grouped and by channel, and tied linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.d = nn.Linear(8, 8)
        self.e = nn.Linear(8, 8)
        self.e.weight = self.d.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        made: Tensor = self.e(torch.tanh(self.d(y.mean((2, 3)))))
        return made


def data(count: int = 24) -> Batches:
    torch.manual_seed(1)
    return [(torch.randn(8, 3, 6, 6), torch.randint(0, 8, (8,))) for _ in range(count // 8)]


def test_slopes_are_those_of_single_samples_and_ties_count_once() -> None:
    torch.manual_seed(0)
    net, given = Net(), data()
    blocks = [Blocks(net.b, 4, 40), Blocks(net.d, 4, 16)]
    found = slopes_of(net, [["b"], ["d", "e"]], blocks, given, F.cross_entropy, 1e-3)
    assert [own.values.shape for own in found] == [(24, 8, 40), (24, 4, 16)]
    x, y = given[1]
    F.cross_entropy(net(x[3:4]), y[3:4]).backward()
    for block, own, layer in zip(blocks, found, (net.b, net.d), strict=True):
        assert layer.weight.grad is not None
        torch.testing.assert_close(block.join(own.values[11].double()).float(), layer.weight.grad)
        mean = float(own.values.square().sum()) / 24 / block.count
        assert own.damp == pytest.approx(1e-3 * mean, rel=1e-4)


@pytest.mark.parametrize("pattern", ["1x4", "element"])
@pytest.mark.parametrize("steps", [1, 3])
def test_zeros_are_exact_and_memory_changes_nothing(pattern: str, steps: int) -> None:
    torch.manual_seed(0)
    net = Net()
    one, other = copy.deepcopy(net), copy.deepcopy(net)
    options = {"zeros": 0.5, "pattern": pattern, "steps": steps, "scope": "layer", "block": 24}
    rows = tops.prune.fisher_(one, data(), **options)
    assert [row.name for row in rows] == ["a", "b", "c", "d"]
    units = {"1x4": (72, 72, 72, 16), "element": (216, 288, 72, 64)}[pattern]
    for row, count in zip(rows, units, strict=True):
        assert round(row.measured * count) == round(0.5 * count)
    for layer in (one.a, one.b, one.c, one.d):
        assert bool(layer.weight.isfinite().all())
    assert one.e.weight is one.d.weight
    tops.prune.fisher_(other, data(), memory=4 * 24 * 300, **options)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Classifier(nn.Module):
    """Learns in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.d = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))
        made: Tensor = self.d(F.relu(self.c(y)))
        return made


def test_a_trained_network_loses_less_than_by_magnitude() -> None:
    torch.manual_seed(0)
    net, x = Classifier(), torch.randn(240, 3, 6, 6) + 2 * torch.randn(240, 3, 1, 1)
    logits = torch.cat([x.mean((2, 3)), 2 * x[:, :1].std((2, 3)) - 2], 1)
    y = torch.distributions.Categorical(logits=3 * logits).sample()  # a loss that stays above 0
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    given = [(x[:120], y[:120])]
    lost = {"dense": float(F.cross_entropy(net(x), y).detach())}
    for name in ("fisher", "magnitude", "woodfisher", "random"):
        pruned = copy.deepcopy(net)
        if name == "fisher":
            tops.prune.fisher_(pruned, given, 0.5, "1x4", skip="a")
        else:
            more = {"batches": given, "loss": F.cross_entropy} if name == "woodfisher" else {}
            options = {"criterion": name, "skip": "a", **more}
            tops.prune.Pruner(pruned, "one_shot", 1, 0.5, "1x4", **options).step()
        lost[name] = float(F.cross_entropy(pruned(x), y).detach()) - lost["dense"]
    assert lost["fisher"] < 0.3 * lost["magnitude"]
    assert lost["woodfisher"] < lost["random"]


@pytest.mark.parametrize("pattern", ["1x4", "element", "2x4", "filter"])
def test_woodfisher_ranks_units_by_the_rise_of_the_loss_without_them(pattern: str) -> None:
    torch.manual_seed(0)
    net, x, y = Classifier(), torch.randn(9, 3, 6, 6), torch.arange(9) % 4
    options = {"criterion": "woodfisher", "batches": [(x, y)], "loss": F.cross_entropy}
    pruner = tops.prune.Pruner(net, "one_shot", 1, 0.5, pattern, **options)
    unit = 4 if pattern in ("1x4", "2x4") else 1
    for target in pruner._targets:
        weight = target.weight.detach()
        blocks = Blocks(target.owners[0], unit, 64)
        (slopes,) = slopes_of(net, [[target.name]], [blocks], [(x, y)], F.cross_entropy, 1e-3)
        parts = []
        for rows, values in zip(blocks.split(weight), slopes.values.unbind(1), strict=True):
            dense = values.double().T @ values.double() / 9 + slopes.damp * torch.eye(blocks.size)
            inverse = torch.linalg.inv(dense)
            for first in range(0, blocks.size, unit):
                own = slice(first, first + unit)
                part = torch.zeros(unit, dtype=torch.float64)
                part[0] = rows[own] @ torch.linalg.inv(inverse[own, own]) @ rows[own] / 2
                parts.append(part)
        wanted = unit_sums(blocks.join(torch.cat(parts)), target.pattern)
        found = target.scores(pruner.criterion)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-12)


def test_a_second_call_goes_on_from_the_zeros_of_the_first() -> None:
    torch.manual_seed(0)
    net = Net()
    tops.prune.fisher_(net, data(), 0.3, "1x4")
    gone = net.b.weight == 0
    tops.prune.fisher_(net, data(), 0.6, "1x4")
    assert bool((net.b.weight[gone] == 0).all())


def with_nan(batches: Batches) -> Batches:
    batches[1][0][2] = float("nan")
    return batches


def infinite(output: Tensor, label: Tensor) -> Tensor:
    return output.sum() * float("inf")


BAD: list[tuple[type[TernaryOpsError], str, Callable[[nn.Module], object]]] = [
    (BadConfig, "memory", lambda m: tops.prune.fisher_(m, data(), 0.5, "1x4", memory=1000)),
    (BadConfig, "block", lambda m: tops.prune.fisher_(m, data(), 0.5, "1x4", block=3)),
    (BadConfig, "steps", lambda m: tops.prune.fisher_(m, data(), 0.5, steps=0)),
    (BadConfig, "damp", lambda m: tops.prune.fisher_(m, data(), 0.5, damp=0.0)),
    (BadConfig, "one output channel", lambda m: tops.prune.fisher_(m, data(), 0.5, "filter")),
    (BadConfig, "room for", lambda m: tops.prune.fisher_(m, data(), 0.97, scope="layer")),
    (BadConfig, "labels", lambda m: tops.prune.fisher_(m, [x for x, _ in data()], 0.5)),
    (BadWeights, "gradients", lambda m: tops.prune.fisher_(m, with_nan(data()), 0.5)),
    (BadWeights, "gradients", lambda m: tops.prune.fisher_(m, data(), 0.5, loss=infinite)),
    (UnsupportedModel, "sample", lambda m: tops.prune.fisher_(m, [], 0.5)),
    (BadConfig, "cost", lambda m: tops.prune.fisher_(m, data(), 0.5, "1x4", "time")),
]


@pytest.mark.parametrize(("error", "text", "call"), BAD)
def test_what_does_not_fit_leaves_the_model_alone(
    error: type[TernaryOpsError], text: str, call: Callable[[nn.Module], object]
) -> None:
    model = Net()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=text):
        call(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_idle_layer_is_named_and_an_interrupt_undoes_all() -> None:
    model = Net()
    model.f = nn.Linear(8, 8)
    with pytest.raises(UnsupportedModel, match="'f'"):
        tops.prune.fisher_(model, data(), 0.5)
    before = copy.deepcopy(model.state_dict())
    calls: list[str] = []

    def stop(name: str) -> None:
        calls.append(name)
        if len(calls) == 6:  # when layers have been changed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tops.prune.fisher_(model, data(), 0.5, "1x4", skip="f", on_layer=stop)
    assert calls == ["a", "b", "c", "d", "a", "b"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_damped_zero_is_the_identity() -> None:
    made = damped(torch.stack([torch.zeros(3, 3), 2 * torch.ones(3, 3)]), 0.5)
    assert torch.equal(made[0], torch.eye(3))
    assert torch.equal(made[1], 2 * torch.ones(3, 3) + torch.eye(3))

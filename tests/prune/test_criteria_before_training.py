# SPDX-License-Identifier: Apache-2.0
"""Criteria that read batches before training, beside their formulas by hand."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from criterion_scores import BATCHES, X, Y, scores, tiny
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, BadWeights
from ternary_ops.nn.patterns import lowest
from ternary_ops.prune import CRITERIA, Pruner
from ternary_ops.prune.criteria import weights_of
from ternary_ops.quantize import TernaryConfig, quantize_

NEEDS_LOSS = ("snip", "grasp", "obd")


def images() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, 4, 4, generator=generator)
    return x, torch.randint(0, 5, (8,), generator=generator)


def mean_loss(model: nn.Module) -> Tensor:
    return torch.stack([F.cross_entropy(model(x), y) for x, y in BATCHES]).mean()


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_finite_and_the_network_is_as_it_was(
    criterion: str, training: bool, quantized: bool
) -> None:
    model = images().train(training)
    model[0].weight.requires_grad_(not quantized)
    if quantized:
        quantize_(model, TernaryConfig(zeros=0.5, pattern="1x4"))
    model[-1].weight.grad = torch.randn_like(model[-1].weight)
    model[3].train()  # modes need not be those of the whole
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    gradient, state = model[-1].weight.grad.clone(), torch.get_rng_state()
    pruner = Pruner(
        *(model, "constant", 10, 0.5),
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=criterion,
        batches=[pictures(0), pictures(1)],
        loss=F.cross_entropy,
    )
    for target in pruner._targets:
        groups = getattr(target.owners[0], "groups", 1)
        found = pruner.criterion.scores(target.name, target.weight, groups)
        assert found.shape == target.weight.shape and bool(found.isfinite().all())
    after = model.state_dict()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert [k for k in changed if "phase_code" not in k] == []
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[-1].weight.grad, gradient) and model[0].weight.grad is None
    assert model[0].weight.requires_grad is not quantized


def test_snip_is_what_the_loss_does_without_a_weight() -> None:
    model = tiny()
    found, loss = scores("snip", model), mean_loss(model).item()
    for name, weight in weights_of(model).items():
        change = torch.zeros_like(weight)
        with torch.no_grad():
            for at in range(weight.numel()):
                step = 1e-5 * weight.view(-1)[at]  # a small share of it: the first order
                weight.view(-1)[at] -= step
                change.view(-1)[at] = (mean_loss(model).item() - loss) / 1e-5
                weight.view(-1)[at] += step
        torch.testing.assert_close(found[name], change.abs(), rtol=0.05, atol=1e-6)


def test_grasp_is_the_product_with_an_explicit_hessian() -> None:
    model = tiny()
    weights = weights_of(model)
    flat = torch.cat([w.detach().flatten() for w in weights.values()])

    def of(values: Tensor) -> Tensor:
        parts = torch.split(values, [w.numel() for w in weights.values()])
        given = {
            f"{n}.weight": v.view_as(w) for (n, w), v in zip(weights.items(), parts, strict=True)
        }
        found = [
            F.cross_entropy(torch.func.functional_call(model, given, (x,)), y) for x, y in BATCHES
        ]
        return torch.stack(found).mean()

    hessian = torch.autograd.functional.hessian(of, flat)
    slope = torch.autograd.functional.jacobian(of, flat)
    found = torch.cat([s.flatten() for s in scores("grasp", model).values()])
    torch.testing.assert_close(found, flat * (hessian @ slope), rtol=1e-9, atol=1e-12)
    # The lowest goes first: that lets the gradient's norm grow, or fall least.
    small, norms = 1e-4, []
    for at in (int(found.argmin()), int(found.argmax())):
        moved = flat.clone()
        moved[at] *= 1 - small
        norms.append(float(torch.autograd.functional.jacobian(of, moved).norm() - slope.norm()))
    assert norms[0] > 0 > norms[1]


def test_obd_reads_squared_gradients_of_single_samples() -> None:
    model = tiny()
    fisher = {n: torch.zeros_like(w) for n, w in weights_of(model).items()}
    for x, y in zip(X, Y, strict=True):
        model.zero_grad()
        F.cross_entropy(model(x[None]), y[None]).backward()
        for name, weight in weights_of(model).items():
            assert weight.grad is not None
            fisher[name] += weight.grad**2 / len(X)
    for name, score in scores("obd", model).items():
        wanted = weights_of(model)[name].detach() ** 2 * fisher[name] / 2
        torch.testing.assert_close(score, wanted, rtol=1e-9, atol=0)


def test_lamp_is_its_formula() -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    weight[1, 2], weight[0, 0], weight[3] = weight[2, 4], -weight[2, 4], 0.0
    score = scores("lamp", nn.Sequential(of_weight(weight)))["0"]
    size = weight.abs().flatten()
    above = (size[None] >= size[:, None]) * size.square()
    wanted = size.square() / above.sum(1)
    torch.testing.assert_close(score.flatten(), wanted, rtol=1e-12, atol=0)
    assert float(score.max()) == 1.0


def of_weight(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    layer.weight.data.copy_(weight)
    return layer


def test_synflow_is_the_sum_of_paths_through_a_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    norm = model[1]
    norm.weight.data.uniform_(-2, 2)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    found = scores("synflow", model, [X[:, :4]], None)
    first, last = model[0].weight.detach().abs(), model[3].weight.detach().abs()
    scale = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    paths = torch.einsum("hi,h,oh->ohi", first, scale, last)
    torch.testing.assert_close(found["0"], paths.sum(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found["3"], paths.sum(2), rtol=1e-12, atol=0)
    assert torch.equal(found["0"], scores("synflow", model, [-3 * X[:, :4]], None)["0"])


def deep(width: int = 24) -> nn.Sequential:
    """Narrow in the middle: what SNIP disconnects."""
    torch.manual_seed(0)
    widths = [16, 64, 64, width, 4, width, 64, 64, 5]
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("criterion", ["synflow", "snip"])
def test_at_99_5_percent_synflow_keeps_every_layer_alive_and_snip_warns(
    criterion: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, generator = deep(), torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 16, generator=generator), torch.arange(64) % 5
    pruner = Pruner(
        *(model, "constant", 4, 0.995),
        criterion=criterion,
        batches=[(x, y)],
        loss=F.cross_entropy,
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            pruner.step()
    layers = [m for m in model if isinstance(m, nn.Linear)]
    left = [int(layer.weight.count_nonzero()) for layer in layers]
    total = sum(layer.weight.numel() for layer in layers)
    assert min(left) >= 1 and sum(left) == total - round(0.995 * total)
    warned = [r.getMessage() for r in caplog.records if "leaves nothing" in r.getMessage()]
    paths = torch.ones(16)
    for layer in layers:
        paths = (layer.weight != 0).float() @ paths
    assert bool(paths.any()) is (criterion == "synflow")
    if criterion == "snip":
        assert len(warned) == 1 and "'snip'" in warned[0] and "min_nnz" in warned[0]
    else:  # without the guard too: no layer is left with what it protects alone
        assert warned == []
        kept = _unguarded(pruner, model, sum(left))
        assert min(kept.values()) >= 1


def _unguarded(pruner: Pruner, model: nn.Module, count: int) -> dict[str, int]:
    """SynFlow in 100 rounds without a guard, on fresh weights of the same network."""
    model.load_state_dict(deep().state_dict())
    weights = weights_of(model)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    total = sum(w.numel() for w in weights.values())
    for number in range(1, 101):
        pruner.criterion.refresh(masks)
        flat = torch.cat([pruner.criterion.scores(n, w, 1).flatten() for n, w in weights.items()])
        gone = lowest(flat, total - round(total * (count / total) ** (number / 100)))
        parts = torch.split(~gone, [w.numel() for w in weights.values()])
        masks = {n: p.view_as(w) for (n, w), p in zip(weights.items(), parts, strict=True)}
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_synflow_goes_in_a_hundred_rounds_over_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, count = deep(), []
    for schedule, steps in (("constant", 4), ("linear", 30)):
        pruner = Pruner(
            *(model, schedule, steps, 0.9), criterion="synflow", batches=[torch.ones(2, 16)]
        )
        refreshed = 0

        def refresh(masks: Mapping[str, Tensor]) -> None:
            nonlocal refreshed
            refreshed += 1

        monkeypatch.setattr(pruner.criterion, "refresh", refresh)
        for _ in range(steps):
            pruner.step()
        count.append(refreshed)
    assert 100 <= count[0] <= 104 and 100 <= count[1] <= 130


def test_synflow_copies_the_network_once_and_follows_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies: list[nn.Module] = []

    def counted(model: nn.Module) -> nn.Module:
        copies.append(model)
        return copy.deepcopy(model)

    monkeypatch.setattr("ternary_ops.prune.criteria.probe.copy_of", counted)
    model = deep()
    pruner = Pruner(*(model, "linear", 6, 0.9), criterion="synflow", batches=[torch.ones(2, 16)])
    for _ in range(3):
        pruner.step()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 0.5 * torch.rand_like(weight))
    assert copies == [model]
    masks = {target.name: target.mask for target in pruner._targets}
    pruner.criterion.refresh(masks)
    fresh = scores("synflow", model, [torch.ones(2, 16)], None)
    for target in pruner._targets:
        assert torch.equal(
            pruner.criterion.scores(target.name, target.weight, 1), fresh[target.name]
        )


def test_slimming_scales_weights_by_the_norm_behind_them() -> None:
    model = images()
    model[1].weight.data.uniform_(-2, 2)
    found = scores("slimming", model, [pictures(0)], None)
    wanted = model[0].weight.abs() * model[1].weight.abs().view(-1, 1, 1, 1)
    torch.testing.assert_close(found["0"], wanted.detach())
    torch.testing.assert_close(found["4"], model[4].weight.detach().abs())


def test_activities_of_batches_are_their_formulas() -> None:
    model, given = images().eval(), [pictures(0), pictures(1)]
    inputs = [model[:4](x).detach() for x, _ in given]
    kinds = {
        "wanda": lambda x: x.square().mean((0, 2, 3)),
        "apoz": lambda x: (x > 0).float().mean((0, 2, 3)),
        "variance": lambda x: x.var((0, 2, 3), correction=0),
    }
    size = model[4].weight.detach().abs()
    for name, statistic in kinds.items():
        seen = torch.stack([statistic(x) for x in inputs]).mean(0)
        each = torch.cat([seen[:4].expand(4, 4), seen[4:].expand(4, 4)])[:, :, None, None]
        wanted = {"wanda": size * each.sqrt(), "apoz": size * each, "variance": size**2 * each}
        found = scores(name, model, given, None)["4"]
        torch.testing.assert_close(found, wanted[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["magnitude", "lamp", "snip", "obd", "synflow"])
def test_signs_of_units_do_not_matter(name: str) -> None:
    """tanh is odd: a hidden unit with its signs flipped, and whatever reads it, does the same."""
    model, flipped = tiny(), tiny()
    flip = torch.tensor([1, -1, -1, 1, -1])
    with torch.no_grad():
        flipped[0].weight *= flip[:, None]
        flipped[0].bias *= flip
        flipped[2].weight *= flip
    one, other = scores(name, model), scores(name, flipped)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["lamp", "snip", "synflow"])
def test_ranks_within_a_layer_do_not_depend_on_its_scale(name: str) -> None:
    """ReLU is homogeneous: twice the weights of a layer, half of the next, do the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight *= 8
        scaled[0].bias *= 8
        scaled[2].weight /= 8
    one, other = scores(name, model), scores(name, scaled)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-15)


def test_gradients_that_are_not_finite_stop_before_training() -> None:
    model = images()
    bad = pictures(0)[0].clone()
    bad[0, 0] = math.nan
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for name in NEEDS_LOSS:
        with pytest.raises(BadWeights, match="finite gradients of the batches.*NaN or infinity in"):
            Pruner(
                *(model, "agp", 5, 0.5),
                optimizer=optimizer,
                criterion=name,
                batches=[(bad, pictures(0)[1])],
                loss=F.cross_entropy,
            )
    assert not any(len(m._forward_pre_hooks) for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks


def test_a_batch_that_does_not_fit_leaves_no_hook() -> None:
    model = images()
    with pytest.raises(RuntimeError):
        Pruner(model, "agp", 5, 0.5, criterion="wanda", batches=[torch.zeros(2, 4, 4, 4)])
    assert not any(len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("criterion", "batches", "loss", "match"),
    [
        ("snip", None, F.cross_entropy, "batches for criterion 'snip'"),
        ("grasp", BATCHES, None, "loss for criterion 'grasp'"),
        ("synflow", None, None, "batches for criterion 'synflow'"),
        ("snip", [X], F.cross_entropy, "batches with labels"),
        ("snip", BATCHES, "cross_entropy", "loss as a function"),
        ("snip", BATCHES, lambda a, y: a, "a loss of one number"),
        ("snip", BATCHES, lambda a, y: a.detach().sum(), "a loss of one number"),
        ("snip", BATCHES, lambda a, y: 1.0, "loss.* of type Tensor"),
    ],
)
def test_what_a_criterion_lacks_is_named(
    criterion: str, batches: Any, loss: Any, match: str
) -> None:
    with pytest.raises(BadConfig, match=match):
        Pruner(tiny(), "agp", 5, 0.5, criterion=criterion, batches=batches, loss=loss)


def test_obd_is_magnitude_where_the_curvature_is_equal_everywhere() -> None:
    """Inputs of +-1 and a loss that sums the outputs: every squared gradient is 1."""
    model = nn.Sequential(nn.Linear(6, 5)).double()
    found = scores("obd", model, [(X.sign(), Y)], lambda output, label: output.sum())["0"]
    size = model[0].weight.detach().square()
    torch.testing.assert_close(found, size / 2, rtol=1e-12, atol=0)
    assert torch.equal(lowest(found.flatten(), 13), lowest(size.flatten(), 13))

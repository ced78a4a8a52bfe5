# SPDX-License-Identifier: Apache-2.0
"""Penalties beside their formulas, what they do not depend on, and what they do to weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.prune import PENALTIES, penalty, register_penalty


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
    ).double()
    for at in (1, 4):
        nn.init.normal_(model[at].weight)
    return model


def quads(weight: Tensor) -> Tensor:
    """Norms of four input channels, by hand."""
    found = []
    for row in weight.flatten(2):
        for start in range(0, row.shape[0], 4):
            found += [row[start : start + 4, tap].norm() for tap in range(row.shape[1])]
    return torch.stack(found)


def test_penalties_are_their_formulas() -> None:
    model = net()
    first, last = model[0].weight, model[3].weight
    scales = torch.cat([model[1].weight, model[4].weight]).abs()
    norms = [quads(first), quads(last)]
    sizes = [torch.full((54,), 3.0).double(), torch.tensor([4.0, 2.0] * 4).double()]
    n = [first.numel(), last.numel()]
    wanted = {
        ("l1", "element"): first.abs().sum() + last.abs().sum(),
        ("l1", "1x4"): norms[0].sum() + norms[1].sum(),
        ("group_lasso", "1x4"): sum(
            (u * s.sqrt()).sum() for u, s in zip(norms, sizes, strict=True)
        ),
        ("group_lasso", "filter"): sum(
            (w.flatten(1).norm(dim=1) * w[0].numel() ** 0.5).sum() for w in (first, last)
        ),
        ("hoyer_square", "element"): sum(
            w.abs().sum() ** 2 / w.square().sum() for w in (first, last)
        ),
        ("hoyer", "element"): sum(
            (w.abs().sum() / w.norm() - 1) / (k**0.5 - 1)
            for w, k in zip((first, last), n, strict=True)
        ),
        ("slimming", "element"): scales.sum(),
        ("polarization", "element"): 1.2 * scales.sum() - (scales - scales.mean()).abs().sum(),
    }
    for (name, pattern), value in wanted.items():
        torch.testing.assert_close(penalty(name, pattern)(model), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_right_and_finite_at_zero(name: str) -> None:
    model = net()
    for parameter in model.parameters():
        parameter.data[0] = 0
    rule = penalty(name, "1x4")
    rule(model).backward()
    for part in (model[0].weight, model[1].weight):
        if part.grad is None or not bool(part.grad.any()):
            continue
        assert bool(part.grad.isfinite().all())
        flat, step = part.data.view(-1), 1e-6
        for at in range(len(flat) // 2, len(flat), 7):
            flat[at] += step
            above = rule(model).item()
            flat[at] -= 2 * step
            slope = (above - rule(model).item()) / (2 * step)
            flat[at] += step
            assert part.grad.view(-1)[at].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["hoyer", "hoyer_square"])
def test_hoyers_do_not_depend_on_scale_and_are_least_for_one_unit(name: str) -> None:
    model, rule = net(), penalty(name)
    scaled = copy.deepcopy(model)
    scaled[0].weight.data *= -37.0
    torch.testing.assert_close(rule(model), rule(scaled), rtol=1e-12, atol=0)
    for weight in (model[0].weight.data, model[3].weight.data):
        weight.zero_()
        weight[1, 2] = (
            -0.3
            if weight.shape[2] == 1
            else torch.eye(3)[0].double().outer(torch.eye(3)[0].double())
        )
    assert rule(model).item() == pytest.approx({"hoyer": 0.0, "hoyer_square": 2.0}[name], abs=1e-9)
    for weight in (model[0].weight.data, model[3].weight.data):
        weight.fill_(0.5)
    most = {"hoyer": 2.0, "hoyer_square": model[0].weight.numel() + model[3].weight.numel()}
    assert rule(model).item() == pytest.approx(most[name])


def test_group_lasso_empties_the_quads_that_the_task_does_not_need() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator)
    y = x[:, :4] @ torch.randn(4, 3, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 3))
    optimizer, rule = torch.optim.Adam(model.parameters(), 0.03), penalty("group_lasso", "1x4")
    for _ in range(100):
        loss = F.mse_loss(model(x), y) + 0.02 * rule(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    size = model[0].weight.detach().view(3, 4, 4).norm(dim=2)
    assert float(size[:, 0].min()) > 20 * float(size[:, 1:].max())


@pytest.fixture
def own() -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    known = dict(PENALTIES)
    yield
    PENALTIES.clear()
    PENALTIES.update(known)


@pytest.mark.usefixtures("own")
def test_a_penalty_of_ones_own_and_names_that_are_not() -> None:
    register_penalty("ridge", lambda parts, sizes: sum(p.square().sum() for p in parts))
    model = net()
    wanted = model[3].weight.square().sum()
    torch.testing.assert_close(penalty("ridge", "1x4", skip="0")(model), wanted)
    with pytest.raises(BadConfig, match="a penalty as one of l1"):
        penalty("l3")
    with pytest.raises(BadConfig, match="a free name"):
        register_penalty("l1", lambda parts, sizes: parts[0].sum())
    with pytest.raises(BadConfig, match='on "weights" or "scales"'):
        register_penalty("l4", lambda parts, sizes: parts[0].sum(), on="gates")
    with pytest.raises(UnsupportedModel, match="norm with scales"):
        penalty("slimming")(nn.Sequential(nn.Linear(3, 3)))

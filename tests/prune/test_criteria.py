# SPDX-License-Identifier: Apache-2.0
"""Criteria, 8-bit layers, the decay to quantized weights, and gradients that are not finite."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, BadWeights, FormatError
from ternary_ops.nn import TernaryConv2d, TernaryLayer
from ternary_ops.nn.patterns import get_pattern, unit_scores, unit_sums
from ternary_ops.nn.ternarize import cosine
from ternary_ops.prune import Pruner
from ternary_ops.prune.criteria import CRITERIA
from ternary_ops.quantize import TernaryConfig, plan, quantize_


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(12, 9, 1),
        nn.Flatten(),
        nn.Linear(9 * 16, 5),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, 4, 4, generator=generator)
    return x, torch.randint(0, 5, (8,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, seed: int) -> None:
    x, y = batch(seed)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    pruner.step()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("nested", [True, False])
def test_every_criterion_meets_the_target_and_keeps_what_it_pruned(
    criterion: str, nested: bool
) -> None:
    model = net()
    optimizer = sgd(model)
    given = {"batches": [batch(7)], "loss": F.cross_entropy}
    if criterion in ("wanda", "apoz", "variance"):
        given.clear()  # they read training too
    pruner = Pruner(
        *(model, "agp", 20, 0.7, "1x4"),
        optimizer=optimizer,
        criterion=criterion,
        nested=nested,
        **given,
    )
    gone: list[Tensor] = [torch.zeros(0)] * 4
    layers = [m for m in model if hasattr(m, "weight")]
    for seed in range(20):
        step(model, optimizer, pruner, seed)
        empty = [layer.weight == 0 for layer in layers]
        if nested and seed:
            assert all(bool(now[before].all()) for now, before in zip(empty, gone, strict=True))
        gone = empty
    # The grouped layer takes single elements: two totals.
    units = [unit_scores(layer.weight, get_pattern("1x4")) for layer in layers]
    assert sum(int((u == 0).sum()) for u in units) == round(0.7 * sum(len(u) for u in units))


def test_criteria_differ_and_are_what_their_formulas_say() -> None:
    model = net()
    optimizer = sgd(model)
    pruners = {
        name: Pruner(model, "one_shot", 100, 0.5, optimizer=optimizer, criterion=name)
        for name in ("magnitude", "movement", "taylor", "wanda", "random")
    }
    layer, name = model[2], "2"
    movement, taylor, wanda = torch.zeros(()), None, None
    for seed in range(3):
        x, y = batch(seed)
        seen = model[1](model[0](x)).detach()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        product = (layer.weight.grad * layer.weight).detach()
        movement = movement - product
        taylor = product.square() if taylor is None else 0.9 * taylor + 0.1 * product.square()
        power = seen.square().mean((0, 2, 3))
        wanda = power if wanda is None else 0.9 * wanda + 0.1 * power
        optimizer.step()
    assert taylor is not None and wanda is not None
    # Rows 0..5 read input channels 0..3, rows 6..11 read 4..7.
    norms = torch.cat([wanda[:4].sqrt().expand(6, 4), wanda[4:].sqrt().expand(6, 4)])
    wanted = {
        "magnitude": layer.weight.abs(),
        "movement": movement,
        "taylor": taylor,
        "wanda": layer.weight.abs() * norms[:, :, None, None],
    }
    for key, scores in wanted.items():
        got = pruners[key].criterion.scores(name, layer.weight, groups=2)
        torch.testing.assert_close(got, scores.detach(), rtol=1e-5, atol=1e-7)
    random = pruners["random"].criterion.scores(name, layer.weight, groups=2)
    assert torch.equal(random, pruners["random"].criterion.scores(name, layer.weight, groups=2))
    assert not torch.equal(
        random[:8, :4, 0], pruners["random"].criterion.scores("0", layer.weight, 1)[:8, :4, 0]
    )


def test_taylor_is_the_change_of_the_loss() -> None:
    """g * w of a small weight against what the loss does without it."""
    model = net().double()
    x, y = batch(0)
    loss = F.cross_entropy(model(x.double()), y)
    loss.backward()
    weight = model[4].weight
    with torch.no_grad():
        smallest = weight.abs().flatten().argsort()[:8]
        for i in smallest:
            at = divmod(int(i), 12)
            guess = float(weight.grad[at].item() * weight[at].item())
            kept = weight[at].clone()
            weight[at] = 0
            change = float(loss - F.cross_entropy(model(x.double()), y))
            weight[at] = kept
            assert change == pytest.approx(guess, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("criterion", ["movement", "taylor", "wanda"])
def test_a_resumed_run_has_the_same_masks(criterion: str) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        model = net()
        optimizer = sgd(model)
        pruner = Pruner(model, "one_cycle", 16, 0.6, optimizer=optimizer, criterion=criterion)
        return model, optimizer, pruner

    whole = fresh()
    for seed in range(16):
        step(*whole, seed)
    first = fresh()
    for seed in range(7):
        step(*first, seed)
    states = [copy.deepcopy(part.state_dict()) for part in first]
    second = fresh()
    for part, state in zip(second, states, strict=True):
        part.load_state_dict(state)
    for seed in range(7, 16):
        step(*second, seed)
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    other = Pruner(net(), "one_cycle", 16, 0.6)
    with pytest.raises(FormatError, match="criterion"):
        other.load_state_dict(states[2])


def test_unit_sums_keep_the_sign() -> None:
    values = torch.randn(5, 6, 3, 3)
    sums = unit_sums(values, get_pattern("1x4")).view(5, 2, 9)
    torch.testing.assert_close(sums[:, 0], values[:, :4].sum(1).flatten(1))
    torch.testing.assert_close(sums[:, 1], values[:, 4:].sum(1).flatten(1))


def test_gradient_criteria_need_the_optimizer_and_names_are_checked() -> None:
    with pytest.raises(BadConfig, match="optimizer"):
        Pruner(net(), "agp", 5, 0.5, criterion="movement")
    with pytest.raises(BadConfig, match="criterion as one of"):
        Pruner(net(), "agp", 5, 0.5, criterion="size")
    with pytest.raises(BadConfig, match="quantized_decay"):
        Pruner(net(), "agp", 5, 0.5, quantized_decay=0.1)
    with pytest.raises(BadConfig, match="quantized_decay"):
        Pruner(net(), "agp", 5, 0.5, quantized_decay=float("nan"), optimizer=sgd(net()))


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_a_gradient_that_is_not_finite_stops_before_any_weight_changes(criterion: str) -> None:
    model = net()
    optimizer = sgd(model)
    pruner = Pruner(model, "agp", 10, 0.5, optimizer=optimizer, criterion=criterion)
    for seed in range(3):
        step(model, optimizer, pruner, seed)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(pruner.state_dict())
    x, y = batch(9)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    model[4].weight.grad[3, 2] = float("nan")
    with pytest.raises(BadWeights, match="step 4.*that of 4"):
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    now = pruner.state_dict()
    assert now["step"] == state["step"]
    assert all(torch.equal(a, b) for a, b in zip(now["pruned"], state["pruned"], strict=True))
    step(model, optimizer, pruner, 3)  # training can go on


def test_an_optimizer_outlives_its_pruner() -> None:
    model = net()
    optimizer = sgd(model)
    pruner = Pruner(model, "agp", 4, 0.5, optimizer=optimizer)
    step(model, optimizer, pruner, 0)
    del pruner
    model[0].weight.grad.fill_(float("nan"))
    optimizer.step()
    assert not bool(model[0].weight.isfinite().any())


def test_8_bit_layers_are_pruned_where_the_plan_says_so() -> None:
    model = net()
    config = TernaryConfig("int8", zeros=0.6, pattern="1x4", scope="layer")
    rows = plan(model, config)
    assert [row.action for row in rows] == ["int8"] * 4
    assert [row.pattern for row in rows] == ["", "1x4", "1x4", ""]
    quantize_(model, rows)
    optimizer = sgd(model)
    pruner = Pruner(model, "one_cycle", 10, optimizer=optimizer)
    for seed in range(10):
        step(model, optimizer, pruner, seed)
    layers = [m for m in model if isinstance(m, TernaryLayer)]
    for layer, share in zip(layers, (0.0, 0.6, 0.6, 0.0), strict=True):
        codes = layer.int8()[0]
        scores = unit_scores(codes.float(), get_pattern("1x4"))
        if share:
            assert int((scores == 0).sum()) == round(share * len(scores))
            assert layer.phase == "frozen" and int(codes.abs().max()) > 1
        else:
            assert int((scores == 0).sum()) == 0


def test_zeros_default_to_what_the_weights_are_for() -> None:
    assert TernaryConfig().zeros == 0.9
    assert TernaryConfig("int8").zeros == 0.0
    assert TernaryConfig.from_dict(TernaryConfig("int8").to_dict()) == TernaryConfig("int8")


def _discrepancy(model: nn.Module) -> float:
    layers = [m for m in model if isinstance(m, TernaryConv2d) and m.config.weights == "ternary"]
    return sum(1 - cosine(m.weight.detach(), m.dequantized_weight()) for m in layers) / len(layers)


def _trained(**options: Any) -> nn.Module:
    model = net()
    quantize_(model, TernaryConfig(zeros=0.5, pattern="element"))
    optimizer = sgd(model)
    pruner = Pruner(model, "one_cycle", 60, optimizer=optimizer, freeze_at=1.0, **options)
    for seed in range(59):
        step(model, optimizer, pruner, seed)
    return model


def test_decay_brings_weights_to_their_quantized_values() -> None:
    free, decayed = _discrepancy(_trained()), _discrepancy(_trained(quantized_decay=4.0))
    assert 0 < decayed < 0.7 * free

# SPDX-License-Identifier: Apache-2.0
"""Gates beside their formulas; the masks they end in, through quantize_ and compile."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel
from ternary_ops.nn import TernaryLayer
from ternary_ops.nn.patterns import get_pattern, unit_scores
from ternary_ops.prune import GATES, LearnedSparsity
from ternary_ops.prune.gates import HardConcrete, SoftMovement, SoftThreshold, Variational

ELEMENT = get_pattern("element")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def task() -> tuple[Tensor, Tensor]:
    """Labels of the first four channels; the others are noise."""
    x = torch.randn(96, 8, 5, 5, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].mean((2, 3)).argmax(1)


def train(
    model: nn.Module, learned: LearnedSparsity, strength: float, steps: int, rate: float = 0.02
) -> torch.optim.Optimizer:
    x, y = task()
    own = {id(p) for p in learned.parameters()}
    rest = [p for p in model.parameters() if id(p) not in own]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 5e-3}], 5e-3)
    optimizer.add_param_group({"params": list(learned.parameters()), "lr": rate})
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y) + strength * learned.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return optimizer


def test_expected_l0_is_the_monte_carlo_count_of_non_zeros() -> None:
    weight = torch.randn(40, 50)
    gate = HardConcrete(weight, ELEMENT)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 2)
        expected = gate.price(weight).sum().item()
        torch.manual_seed(0)
        counts = [float(gate(weight).count_nonzero()) for _ in range(100)]
    assert sum(counts) / len(counts) == pytest.approx(expected, rel=0.01)


def test_thresholds_are_soft() -> None:
    weight = torch.randn(4, 8).double()
    gate = SoftThreshold(weight, ELEMENT)
    gate.threshold.data.fill_(0.3)
    t = 1 / (1 + math.exp(-0.3))
    wanted = weight.sign() * (weight.abs() - t).clamp_min(0)
    torch.testing.assert_close(gate(weight), wanted)
    quads = SoftThreshold(weight, get_pattern("1x4"))
    quads.threshold.data.fill_(0.3)
    size = weight.view(4, 2, 4).square().mean(2).sqrt()
    wanted = weight.view(4, 2, 4) * (1 - t / size).clamp_min(0)[..., None]
    torch.testing.assert_close(quads(weight), wanted.view(4, 8))


def test_the_divergence_is_that_of_the_log_uniform_prior() -> None:
    """Up to a constant it is -log(alpha) / 2 + E log |1 + sqrt(alpha) e|."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400_000, generator=generator).double()
    logs = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.5]).double()
    weight = torch.ones(5, 1).double()
    gate = Variational(weight, ELEMENT)
    gate.log_sigma2.data.copy_(logs[:, None])
    found = gate.price(weight).detach()
    exact = [
        -0.5 * a + (1 + math.exp(a / 2) * noise).abs().log().mean().item() for a in logs.tolist()
    ]
    torch.testing.assert_close(
        found - found[-1], torch.tensor(exact).double() - exact[-1], atol=0.02, rtol=0
    )


def test_scores_of_soft_movement_fall_by_the_rate_times_g_w() -> None:
    weight = nn.Parameter(torch.randn(3, 8))
    gate = SoftMovement(weight, get_pattern("1x4"))
    gate.score.data[1] = -3.0  # off: the gradient passes all the same
    slope = torch.randn(3, 8)
    made = gate(weight)
    (made * slope).sum().backward()
    assert gate.score.grad is not None
    torch.testing.assert_close(gate.score.grad, (slope * weight).detach().view(6, 4).sum(1))
    on = torch.ones(6, 1)
    on[1] = 0
    torch.testing.assert_close(made.view(6, 4), weight.view(6, 4) * on)


@pytest.mark.parametrize(
    ("gate", "strength", "rate", "quantized"),
    [
        ("l0", 0.4, 0.3, False),
        ("l0", 0.4, 0.3, True),
        ("str", 0.3, 0.25, False),
        ("variational", 0.3, 0.4, False),
        ("movement", 1.0, 0.3, False),
    ],
)
def test_a_network_learns_zeros_that_compile_reads(
    gate: str, strength: float, rate: float, quantized: bool
) -> None:
    model, (x, _) = net(), task()
    config = tops.TernaryConfig("int8", activations="float32")
    if quantized:
        config = tops.TernaryConfig(pattern="1x4", activations="float32")
        tops.quantize_(model, tops.plan(model, config, rules={"5": config, "0": config}))
        for layer in model:
            if isinstance(layer, TernaryLayer):
                layer.phase = "float"
    before = dict(model.named_parameters())
    learned = LearnedSparsity(model, gate, None if quantized else "1x4")
    optimizer = train(model, learned, strength, 40, rate)
    model.eval()
    with torch.no_grad():
        wanted, zeros = model(x), learned.zeros
    masks = learned.finish_(optimizer)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[n] is before[n] for n in before)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(before)
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
    layers = {n: m for n, m in model.named_modules() if n in masks}
    units = torch.cat([unit_scores(m.weight, get_pattern("1x4")) for m in layers.values()])
    assert 0.1 < zeros < 0.99 and float((units == 0).float().mean()) == pytest.approx(zeros)
    for name, layer in layers.items():
        assert not bool(layer.weight.detach()[~masks[name]].any())
        if isinstance(layer, TernaryLayer):
            assert torch.equal(layer.mask, masks[name])
            layer.phase = "ternary"
    if not quantized:
        tops.quantize_(model, tops.plan(model, config))
    program = tops.compile(model.eval(), x[:2], allow_unfinished=True)
    with torch.no_grad():
        found = torch.from_numpy(program(x[:8].numpy()))
        torch.testing.assert_close(found, model(x[:8]), rtol=1e-3, atol=1e-3)
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        if isinstance(layer, TernaryLayer):
            assert not bool(layer.integer_weight()[0][~mask].any())


def test_a_layer_that_would_vanish_is_named_and_nothing_changes() -> None:
    model = net()
    learned = LearnedSparsity(model, "l0", "1x4")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gates: Any = model[2].parametrizations.weight[0]  # type: ignore[union-attr,index]
    gates.log_alpha.data.fill_(-9.0)
    with pytest.raises(BadWeights, match="none in 2;"):
        learned.finish_()
    assert torch.equal(
        model[0].parametrizations.weight.original, before["0.parametrizations.weight.original"]
    )  # type: ignore[union-attr]
    gates.log_alpha.data.fill_(9.0)
    gates.log_alpha.data[0] = math.nan
    with pytest.raises(BadWeights, match="NaN or infinity in 2;"):
        learned.finish_()
    gates.log_alpha.data[0] = 1.0
    assert learned.finish_().keys() == {"0", "2", "5"}
    with pytest.raises(BadConfig, match="gates before finish_"):
        learned.loss()


def test_noise_is_gone_in_eval_mode_and_tied_weights_share_a_gate() -> None:
    for name in GATES:
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        model[2].weight = model[0].weight
        x = torch.randn(3, 8)
        wanted = model(x)
        learned = LearnedSparsity(model, name)
        assert len(list(learned.parameters())) == 1
        model.eval()
        assert torch.equal(model(x), model(x))
        torch.testing.assert_close(model(x), wanted, rtol=1e-3, atol=1e-3)
        learned.finish_()
        assert model[2].weight is model[0].weight


def test_other_arguments_are_refused() -> None:
    with pytest.raises(BadConfig, match="a gate as one of l0, str, variational, movement"):
        LearnedSparsity(net(), "dropout")
    with pytest.raises(BadConfig, match="globs that match"):
        LearnedSparsity(net(), "l0", skip="head")
    with pytest.raises(BadConfig, match="units are free of each other, got 2:4"):
        LearnedSparsity(net(), "l0", "2:4")
    model = net()
    LearnedSparsity(model, "l0")
    with pytest.raises(UnsupportedModel, match="computed"):
        LearnedSparsity(model, "l0")


def test_a_pruner_refuses_weights_that_gates_compute() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = tops.prune.Pruner(model, "linear", 4, 0.5, optimizer=optimizer)
    learned = tops.prune.LearnedSparsity(model, "l0")
    before = copy.deepcopy(model.state_dict())
    (model(torch.randn(3, 8)).sum() + learned.loss()).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (optimizer.step, pruner.step):
            with pytest.raises(UnsupportedModel, match="'0' that is a parameter.*\n.*finish_"):
                step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    learned.finish_(optimizer)
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    pruner.step()

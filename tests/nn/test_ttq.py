# SPDX-License-Identifier: Apache-2.0
"""Trained Ternary Quantization: two learned scales in training, one per filter when packed."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.models import digits_resnet
from ternary_ops.nn import TernaryConv2d, TernaryLayer
from ternary_ops.nn.ternarize import LearnedScales, ttq_scale_per_filter
from ternary_ops.prune import Pruner

CONFIG = tops.TernaryConfig(ternarizer="ttq", zeros=0.5, pattern="element")


def layer(seed: int = 0) -> TernaryConv2d:
    torch.manual_seed(seed)
    return TernaryConv2d(6, 5, 3, padding=1, config=CONFIG)


def test_codes_follow_the_layers_largest_weight_and_poles_start_at_the_means() -> None:
    one = layer()
    weight = one.weight.detach()
    codes, _ = one.integer_weight()
    large = weight.abs() > 0.05 * weight.abs().max()
    assert torch.equal(codes, (torch.sign(weight) * large).to(torch.int8))
    assert one.ttq_scales is not None
    wanted = [weight[codes > 0].mean(), -weight[codes < 0].mean()]
    torch.testing.assert_close(one.ttq_scales.detach(), torch.stack(wanted))


def test_forward_and_gradients_are_the_formulas() -> None:
    one, x = layer(), torch.randn(3, 6, 5, 5)
    assert one.ttq_scales is not None
    with torch.no_grad():
        one.ttq_scales.copy_(torch.tensor([0.7, 0.2]))
    codes = one.integer_weight()[0].float()
    weight = torch.where(codes > 0, 0.7, torch.where(codes < 0, -0.2, 0.0)).requires_grad_()
    y = F.conv2d(x, weight, one.bias, padding=1)
    pull = torch.randn_like(y)
    (y * pull).sum().backward()
    mine = one(x)
    torch.testing.assert_close(mine, y)
    (mine * pull).sum().backward()
    g = weight.grad
    assert g is not None and one.weight.grad is not None
    zones = torch.where(codes > 0, 0.7, torch.where(codes < 0, 0.2, 1.0))
    torch.testing.assert_close(one.weight.grad, g * zones)
    torch.testing.assert_close(
        one.ttq_scales.grad, torch.stack([g[codes > 0].sum(), -g[codes < 0].sum()])
    )


def test_the_gradient_of_the_poles_is_the_derivative() -> None:
    codes = torch.randint(-1, 2, (4, 3, 2, 2)).to(torch.int8)
    scales = torch.tensor([0.6, 0.3], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64)

    def value(p: Tensor) -> Tensor:
        made: Tensor = LearnedScales.apply(weight, codes, p)
        return made.square() * torch.arange(48.0, dtype=torch.float64).view(4, 3, 2, 2)

    assert torch.autograd.gradcheck(value, (scales,))


def test_one_scale_per_filter_is_the_least_squares_fit() -> None:
    codes = torch.randint(-1, 2, (7, 6, 3, 3)).to(torch.int8)
    codes[3] = 0
    scales = torch.tensor([0.9, 0.4])
    scale = ttq_scale_per_filter(codes, scales)
    weight = LearnedScales.apply(torch.zeros(codes.shape), codes, scales)
    for o in range(7):
        if o == 3:
            assert scale[o] == 1.0
            continue
        t, w = codes[o].double().flatten(), weight[o].double().flatten()
        assert float(scale[o]) == pytest.approx(float(t @ w / (t @ t)), rel=1e-6)


def test_poles_start_again_when_the_ternary_phase_begins_and_last_when_frozen() -> None:
    one = layer()
    before = one.ttq_scales.detach().clone()
    pruner = Pruner(nn.Sequential(one), "one_shot", 4, zeros=0.0, ternary_at=0.5)
    with torch.no_grad():
        one.weight.mul_(3.0)
    for factor in (1, 3, 3):
        pruner.step()
        torch.testing.assert_close(one.ttq_scales.detach(), factor * before)
    with torch.no_grad():
        one.ttq_scales.copy_(torch.tensor([2.0, 1.0]))
    x = torch.randn(2, 6, 5, 5)
    y = one(x)
    one.phase = "frozen"
    torch.testing.assert_close(one(x), y)


def test_packing_reports_the_change_and_programs_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(3)
    model = digits_resnet(8)
    tops.quantize_(model, tops.plan(model, CONFIG))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = Pruner(model, "one_cycle", 12, optimizer=optimizer)
    x, y = torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimizer.step()
        pruner.step()
    model.eval()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, TernaryLayer)}
    learned = {name for name, m in layers.items() if m.ttq_scales is not None}
    assert learned == {n for n, m in layers.items() if m.config.weights == "ternary"}
    gaps = [
        float((m.ttq_scales[0] - m.ttq_scales[1]).detach().abs())
        for m in layers.values()
        if m.ttq_scales is not None
    ]
    assert min(gaps) > 1e-4
    tops.calibrate(model, [x])
    program = tops.compile(model, x[:1])
    copied = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING):
        packed = tops.pack_(copied)
    assert set(packed._tops_refit) == learned
    assert all(0 < change < 0.5 for change in packed._tops_refit.values())
    assert "one scale per filter" in caplog.text
    # Residual sums are rounded to 8 bits in the program only.
    ours = torch.from_numpy(program(x.numpy()))
    torch.testing.assert_close(packed(x).detach(), ours, rtol=0, atol=0.1 * float(ours.abs().max()))
    tops.save(model, tmp_path / "w.safetensors")
    again = tops.load(tmp_path / "w.safetensors", digits_resnet(8)).eval()
    torch.testing.assert_close(again(x), packed(x))
    state = copy.deepcopy(model.state_dict())
    assert any(key.endswith("ttq_scales") for key in state)
    model.load_state_dict(state)


def test_settling_keeps_codes_and_an_ordinary_layer_has_nothing_to_settle() -> None:
    one = layer()
    with torch.no_grad():
        one.ttq_scales.copy_(torch.tensor([0.8, 0.3]))
    codes, scale = one.integer_weight()
    change = one.fold_scales()
    assert 0 < change < 1 and one.ttq_scales is None and one.phase == "frozen"
    after = one.integer_weight()
    assert torch.equal(after[0], codes)
    torch.testing.assert_close(after[1], scale)
    plain = nn.Module()
    plain.conv = TernaryConv2d(6, 5, 3, config=tops.TernaryConfig())
    assert plain.conv.fold_scales() == 0.0 and plain.conv.phase == "ternary"


def test_former_names_forward_and_former_states_load() -> None:
    one, other = layer(), layer(1)
    state = {key.replace("ttq_scales", "poles"): v for key, v in one.state_dict().items()}
    assert "poles" in state
    other.load_state_dict(state)
    assert torch.equal(other.ttq_scales, one.ttq_scales)
    with pytest.warns(DeprecationWarning, match="ttq_scales"):
        assert one.poles is one.ttq_scales
    with pytest.warns(DeprecationWarning, match="dequantized_weight"):
        assert torch.equal(one.image(), one.dequantized_weight())
    former = copy.copy(one)
    parameters = {n.replace("ttq_scales", "poles"): p for n, p in one._parameters.items()}
    former.__setstate__({**one.__dict__, "_parameters": parameters})
    assert former.ttq_scales is one.ttq_scales
    assert list(former._parameters) == list(one._parameters)
    optimizer = torch.optim.SGD(one.parameters(), 0.1)
    with pytest.warns(DeprecationWarning, match="quantized_decay="):
        pruner = tops.prune.Pruner(one, total_steps=5, optimizer=optimizer, pull=0.5)
    assert pruner.quantized_decay == 0.5

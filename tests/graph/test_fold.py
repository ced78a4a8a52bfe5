# SPDX-License-Identifier: Apache-2.0
"""BatchNorm folding: what is computed stays, codes change by their sign alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedModel
from ternary_ops.graph.nodes import fused_chain, is_layer
from ternary_ops.graph.trace import trace
from ternary_ops.nn import TernaryLayer
from ternary_ops.quantize import TernaryConfig, calibrate, fold_batchnorm_, plan, quantize_


class Block(nn.Module):
    """A residual block with a normalized shortcut, then a normalized linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.short = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 8)
        self.bn3 = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        y = self.relu(y).mean((2, 3))
        return self.out(self.relu(self.bn3(self.fc(y))))


def randomize(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 3.0)
            if module.affine:
                module.weight.data.normal_()  # about half of them negative
                module.bias.data.normal_()
    return model.eval()


def quantized(ternarizer: str = "ptq", pattern: str = "1x4", phase: str = "ternary") -> nn.Module:
    model = randomize(Block())
    config = TernaryConfig(ternarizer=ternarizer, pattern=pattern)
    quantize_(model, plan(model, rules={"*": config, "out": TernaryConfig(weights="int8")}))
    for layer in layers(model).values():
        if layer.config.weights == "ternary":
            layer.mask &= (torch.rand_like(layer.weight[:, :1]) < 0.8) | (layer.mask.shape[1] < 4)
        layer.phase = phase
    return model


def layers(model: nn.Module) -> dict[str, TernaryLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, TernaryLayer)}


NAMES = ["bn1", "bn2", "short.1", "bn3"]


def test_a_float_network_computes_the_same() -> None:
    model = randomize(Block())
    x = torch.randn(4, 6, 5, 5)
    before = model(x)
    assert sorted(fold_batchnorm_(model)) == sorted(NAMES)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert isinstance(model.bn1, nn.Identity) and model.conv1.bias is not None
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert sorted(model._tops_folded) == sorted(NAMES)
    assert fold_batchnorm_(model) == [] and sorted(model._tops_folded) == sorted(NAMES)


@pytest.mark.parametrize("phase", ["ternary", "frozen"])
@pytest.mark.parametrize("pattern", ["1x4", "element"])
@pytest.mark.parametrize("ternarizer", ["ptq", "twn", "absmean"])
def test_codes_change_by_the_sign_of_gamma_alone(ternarizer: str, pattern: str, phase: str) -> None:
    model = quantized(ternarizer, pattern, phase)
    x = torch.randn(4, 6, 5, 5)
    before, codes = model(x), {n: m.integer_weight() for n, m in layers(model).items()}
    norms = {"conv1": model.bn1, "conv2": model.bn2, "short.0": model.short[1], "fc": model.bn3}
    fold_batchnorm_(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    for name, layer in layers(model).items():
        after, scale = layer.integer_weight()
        old, old_scale = codes[name]
        if name not in norms:
            assert torch.equal(after, old) and torch.equal(scale, old_scale)
            continue
        gain = norms[name].weight / (norms[name].running_var + norms[name].eps).sqrt()
        sign = gain.sign().to(torch.int8).view(-1, *[1] * (old.ndim - 1))
        assert (sign < 0).any() and (sign > 0).any()
        assert torch.equal(after, old * sign)
        alive = old.flatten(1).any(1)
        torch.testing.assert_close(scale[alive], (old_scale * gain.abs())[alive].detach())
        frozen = "frozen" if ternarizer == "twn" or phase == "frozen" else "ternary"
        assert layer.phase in ("frozen", frozen)
        assert layer.phase == frozen or ternarizer != "ptq"


def test_integer_inputs_are_untouched() -> None:
    model = quantized()
    x = torch.randn(8, 6, 5, 5)
    calibrate(model, [x])
    ranges = {n: (m.input_range.clone(), m.output_range.clone()) for n, m in layers(model).items()}
    before = model(x)
    fold_batchnorm_(model)
    for name, layer in layers(model).items():
        torch.testing.assert_close(layer.input_range, ranges[name][0], rtol=0, atol=0)
        assert torch.equal(layer.output_range.nan_to_num(7.0), ranges[name][1].nan_to_num(7.0))
    # Inputs of later layers may round the other way: one of 255 steps here and there.
    assert (model(x) - before).abs().max() < 0.05 * before.abs().max()


@pytest.mark.parametrize("gamma", [0.0, -0.0, 1e-42, -1e-38])
@pytest.mark.parametrize("phase", ["ternary", "frozen"])
def test_filters_that_gamma_switches_off_become_empty(gamma: float, phase: str) -> None:
    model = quantized(phase=phase)
    model.bn1.weight.data[2:4] = gamma
    x = torch.randn(4, 6, 5, 5)
    before, old = model(x), model.conv1.ternary()[0]
    fold_batchnorm_(model)
    codes, scale = model.conv1.ternary()
    assert not codes[2:4].any() and (scale[2:4] == 1).all() and scale.isfinite().all()
    assert torch.equal(codes[4:].abs(), old[4:].abs()) and codes[4:].any()
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_float_phase_keeps_real_weights() -> None:
    model = quantized(phase="float")
    x = torch.randn(4, 6, 5, 5)
    before = model(x)
    fold_batchnorm_(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert all(layer.phase == "float" for layer in layers(model).values())


def test_no_affine_and_double_precision_statistics() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 5, 2), nn.BatchNorm2d(5, affine=False)))
    model[1].running_var.mul_(1e-12)  # eps decides
    x = torch.randn(2, 3, 4, 4)
    before = model(x)
    fold_batchnorm_(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(self.bn(self.conv(x))))


class TwoUsers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


@pytest.mark.parametrize(
    "make",
    [
        Shared,
        TwoUsers,
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d(4)),
    ],
)
def test_what_cannot_be_folded_stays(make: Any) -> None:
    model = randomize(make())
    before = copy.deepcopy(model)
    assert fold_batchnorm_(model) == []
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(model(x), before(x))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) if x.sum() > 0 else x


def test_control_flow_is_refused_with_its_reason() -> None:
    with pytest.raises(UnsupportedModel, match="control flow"):
        fold_batchnorm_(Branching())


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, norm: bool = True, bias: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if norm:
            y = self.bn(y)
        return y if bias is None else y + bias


def test_default_arguments_are_constants_of_the_trace() -> None:
    model = randomize(Options())
    x = torch.randn(2, 4, 3, 3)
    before = model(x)
    graph = trace(model)
    assert [n.name for n in graph.graph.nodes if n.op == "placeholder"] == ["x"]
    torch.testing.assert_close(graph(x), before)
    assert fold_batchnorm_(model) == ["bn"]
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_the_fusion_rule() -> None:
    graph = trace(Block()).graph
    chains = {str(n.target): fused_chain(n) for n in graph.nodes if is_layer(n)}
    found = {
        name: [str(part.target) for part in (c.batchnorm, *c.clamps) if part is not None]
        for name, c in chains.items()
    }
    assert found == {
        "conv1": ["bn1", "relu"],
        "conv2": ["bn2", "relu"],
        "short.0": ["short.1"],
        "fc": ["bn3", "relu"],
        "out": [],
    }
    assert chains["conv2"].add is not None and chains["conv2"].residual is chains["short.0"].end
    assert chains["short.0"].add is None and chains["conv1"].add is None


def test_eight_bit_codes_half_way_between_two_stay() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1)))
    with torch.no_grad():
        steps = torch.randint(-126, 126, model[0].weight.shape) + 0.5
        steps[:, 0, 0, 0] = 127
        model[0].weight.copy_(steps * torch.rand(24, 1, 1, 1))
    quantize_(model, TernaryConfig("int8"))
    x = torch.randn(2, 16, 7, 7)
    before, codes = model(x), model[0].int8()[0]
    sign = model[1].weight.sign().view(-1, 1, 1, 1)
    fold_batchnorm_(model)
    assert torch.equal(model[0].int8()[0], (codes * sign).to(torch.int8))
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)

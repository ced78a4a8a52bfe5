# SPDX-License-Identifier: Apache-2.0
"""Weights that hooks or parametrizations compute, and shared ones: folded, compiled, packed right,
or refused by name before anything changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folded import close, net, settled, state, unchanged
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import ternary_ops as tops
from ternary_ops.errors import TernaryOpsError, UnsupportedModel
from ternary_ops.quantize import TernaryConfig, calibrate, fold_batchnorm_, plan, quantize_

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm)")


class Tripled(nn.Module):
    """A user's own parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


def pruned_twice(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(layer, "weight", 0.2)


KINDS: dict[str, Callable[[Any], Any]] = {
    "prune": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "prune twice": pruned_twice,
    "prune the bias": lambda m: prune.l1_unstructured(m, "bias", 0.5),
    "old weight_norm": lambda m: torch.nn.utils.weight_norm(m),
    "old spectral_norm": lambda m: torch.nn.utils.spectral_norm(m),
    "weight_norm": lambda m: parametrizations.weight_norm(m),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m),
    "own parametrization": lambda m: parametrize.register_parametrization(m, "weight", Tripled()),
    "parametrized bias": lambda m: parametrize.register_parametrization(m, "bias", Tripled()),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def computed(kind: str) -> tuple[Any, Tensor, Tensor]:
    model = net()
    KINDS[kind](model[3])
    settled(model)
    # What was computed at the last call is stale from here on: only the next call says.
    for name, parameter in model[3].named_parameters():
        if name.endswith(("_orig", "_g", "original", "original0")):
            parameter.data.mul_(-1.7)
    x = torch.randn(2, 3, 9, 9)
    return model, x, copy_of(model)(x)


def copy_of(model: Any) -> Any:
    """A copy, of tensors with a history too."""
    with torch.no_grad():
        model(torch.randn(1, 3, 9, 9))
    return copy.deepcopy(model)


@kinds
def test_fold_leaves_a_computed_weight_alone(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x, wanted = computed(kind)
    assert fold_batchnorm_(model) == ["1"]
    assert isinstance(model[4], nn.BatchNorm2d) and "4 is not folded: 3: " in caplog.text
    close(model(x).detach(), wanted)


@kinds
def test_compile_takes_the_weight_of_eval_mode(kind: str) -> None:
    model, x, wanted = computed(kind)
    model.train()(torch.randn(4, 3, 9, 9))  # leaves weights with a history, which torch cannot copy
    for module, fresh in zip(model.modules(), copy_of(model.eval()).modules(), strict=True):
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(fresh.state_dict())
    wanted, before = model(x), state(model)
    close(tops.compile(model, x)(x.numpy()), wanted)
    assert unchanged(model, before)
    close(model(x).detach(), wanted)  # hooks and parametrizations still work
    model.train()(x).sum().backward()


@kinds
def test_pack_keeps_float_layers_with_computed_weights(kind: str) -> None:
    model, x, _ = computed(kind)
    made = quantize_(model, plan(model, TernaryConfig(zeros=0.0)))
    assert made["3"].action == "skip"
    calibrate(model, [x])
    wanted = model(x)
    tops.pack_(model)
    assert isinstance(model[0], tops.nn.PackedConv2d) and not isinstance(model[4], nn.Identity)
    assert (model(x) - wanted).norm() < 0.02 * wanted.norm()


@kinds
def test_pack_refuses_quantized_layers_with_computed_weights(kind: str) -> None:
    model = settled(net())
    quantize_(model, plan(model, TernaryConfig(zeros=0.0)))
    x = torch.randn(2, 3, 9, 9)
    calibrate(model, [x])
    KINDS[kind](model[3])
    before, modules = state(model), list(model.modules())
    with pytest.raises(UnsupportedModel, match=r"(?s)got 3: .*(hook|parametriz).*\n  \S"):
        tops.pack_(model)
    assert unchanged(model, before) and list(model.modules()) == modules


@pytest.mark.parametrize("kind", ["prune", "own parametrization", "parametrized bias"])
def test_a_batchnorm_or_slope_that_is_computed(kind: str) -> None:
    model = net()
    model[5] = nn.PReLU(8)
    KINDS[kind](model[4])
    if kind != "parametrized bias":
        KINDS[kind](model[5])
    settled(model)
    for name, parameter in model[4:6].named_parameters():
        if name.endswith(("_orig", "original")):
            parameter.data.mul_(-1.7)
    x = torch.randn(2, 3, 9, 9)
    wanted = copy_of(model)(x)
    close(tops.compile(model, x)(x.numpy()), wanted)
    assert fold_batchnorm_(model) == ["1"]
    close(model(x).detach(), wanted)


@kinds
def test_compile_reads_computed_weights_of_quantized_layers(kind: str) -> None:
    model = settled(net())
    quantize_(model, plan(model, TernaryConfig(zeros=0.0, activations="float32")))
    KINDS[kind](model[3])
    model(torch.randn(1, 3, 9, 9))
    x = torch.randn(2, 3, 9, 9)
    wanted = model(x)
    close(tops.compile(model, x)(x.numpy()), wanted)


class Tied(nn.Module):
    """Two layers, one weight; a BatchNorm behind the first."""

    def __init__(self, called: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.out = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.called = called
        if called:
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x)))
        y = self.b(y) if self.called else F.conv2d(y, self.a.weight, None, 1, 1)
        return self.out(y)


@pytest.mark.parametrize("called", [True, False], ids=["two layers", "a function of the weight"])
def test_a_weight_with_two_readers_is_folded_for_none(called: bool) -> None:
    model = settled(Tied(called))
    x = torch.randn(2, 3, 9, 9)
    wanted = model(x)
    close(tops.compile(model, x)(x.numpy()), wanted)
    assert fold_batchnorm_(model) == []
    close(model(x).detach(), wanted)


def test_a_batchnorm_whose_weight_the_code_reads_stays() -> None:
    class Read(Tied):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(self.a(x)) * self.norm.weight.view(1, -1, 1, 1))

    model = settled(Read())
    x = torch.randn(2, 3, 9, 9)
    model.b = nn.Conv2d(3, 3, 1)  # nothing is tied
    wanted = model(x)
    assert fold_batchnorm_(model) == []
    close(model(x).detach(), wanted)


class Twofold(nn.Module):
    """A BatchNorm under two names and in a list; `way` says by which it is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.way = nn.BatchNorm2d(4), 0
        self.body, self.listed = nn.Sequential(nn.Conv2d(3, 4, 3), self.norm), [self.norm]
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        norm = (self.norm, self.body[1], self.listed[0])[self.way]
        return self.out(F.relu(norm(self.body[0](x))))


def test_a_batchnorm_under_two_names_goes_under_both() -> None:
    model = settled(Twofold())
    x = torch.randn(2, 3, 9, 9)
    wanted = model(x)
    assert fold_batchnorm_(model) == ["norm"]
    for model.way in range(3):
        close(model(x).detach(), wanted)
    close(tops.compile(model, x)(x.numpy()), wanted)


class Twice(nn.Module):
    """One convolution called twice, a BatchNorm of its own behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.two(self.conv(F.relu(self.one(self.conv(x)))))))


def test_a_layer_with_two_batchnorms_keeps_both() -> None:
    model = settled(Twice())
    x = torch.randn(2, 3, 9, 9)
    wanted = model(x)
    assert fold_batchnorm_(model) == []
    close(tops.compile(model, x)(x.numpy()), wanted)


def test_statistics_of_the_batch_are_not_folded() -> None:
    model = settled(net())
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    model[4] = norm
    assert fold_batchnorm_(model) == ["1"] and model[4] is norm
    with pytest.raises(UnsupportedModel, match=r"BatchNorm2d: .*; in 4;"):
        tops.compile(model, torch.randn(2, 3, 9, 9))


def test_a_fold_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is with the layers as they were: a wrong fold changes nothing."""
    from ternary_ops.graph import fold_batchnorm

    model = settled(net())
    x, before = torch.randn(2, 3, 9, 9), state(model)
    real = fold_batchnorm._fold

    def wrong(name: str, layer: Any, norm: Any) -> None:
        real(name, layer, norm)
        if name == "3":
            layer.weight.data[1] *= 1.01

    monkeypatch.setattr(fold_batchnorm, "_fold", wrong)
    with pytest.raises(UnsupportedModel, match="3 with 4 folded in"):
        fold_batchnorm_(model)
    assert unchanged(model, before)
    with pytest.raises(TernaryOpsError):
        tops.compile(model, x)


def test_compile_is_held_to_the_untouched_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from ternary_ops.compiler import pipeline

    real = pipeline.fold_in_trace_

    def wrong(model: Any, pairs: Any) -> None:
        real(model, pairs)
        model.get_submodule("6").weight.data *= 1.01

    monkeypatch.setattr(pipeline, "fold_in_trace_", wrong)
    for quantized in (False, True):
        model = settled(net())
        x = torch.randn(2, 3, 9, 9)
        if quantized:
            quantize_(model, TernaryConfig(zeros=0.0))
            calibrate(model, [x])
        with pytest.raises(UnsupportedModel, match="computes what the model does"):
            tops.compile(model, x)

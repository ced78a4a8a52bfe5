# SPDX-License-Identifier: Apache-2.0
"""F.linear and F.conv2d with a layer's weight are calls of the layer, in training and programs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel
from ternary_ops.nn import TernaryLayer


class Attention(nn.Module):
    """As Swin's: two functional calls, of which one may have a bias that is computed."""

    def __init__(self, bias: str) -> None:
        super().__init__()
        self.bias = bias
        self.qkv = nn.Linear(8, 24, bias=bias != "beside")
        self.proj = nn.Linear(8, 8)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, L, 8]."""
        bias = self.qkv.bias
        if self.bias == "beside":
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        elif self.bias == "changed":
            bias = bias.clone()
            bias[8:16].zero_()
        elif self.bias == "none":
            bias = None
        q, k, v = F.linear(x, weight=self.qkv.weight, bias=bias).chunk(3, -1)
        return F.linear((q + k + v).relu(), self.proj.weight, self.proj.bias)


class Strided(nn.Module):
    """Convolutions, a BatchNorm and a LayerNorm by functions of the modules' own parameters."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 1, bias=False)])
        self.more = nn.Parameter(torch.randn(8))
        self.last = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W]."""
        x = F.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=(1, 1))
        n = self.norm
        x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps)
        x = F.conv2d(x.relu(), self.layers[0].weight, self.more)
        x = x.mean((2, 3))
        return F.layer_norm(x, (8,), self.last.weight, self.last.bias)


def wrap(part: nn.Module, *more: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(part, *more).eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.ndim == 1:
                value.copy_(torch.rand(value.shape) + 0.5)
    return model


CASES: dict[str, Callable[[], tuple[nn.Sequential, Tensor]]] = {
    bias: lambda bias=bias: (wrap(Attention(bias), nn.Linear(8, 5)), torch.randn(6, 7, 8))
    for bias in ("own", "beside", "changed", "none")
}
CASES["convolutions"] = lambda: (wrap(Strided()), torch.randn(6, 3, 9, 8))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Sequential, Tensor]:
    return CASES[request.param]()


def layers(model: nn.Module) -> dict[str, TernaryLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, TernaryLayer)}


@torch.no_grad()
def test_functional_calls_are_counted_rounded_and_compiled(
    case: tuple[nn.Sequential, Tensor],
) -> None:
    model, x = case
    exact = model(x)
    tops.quantize_(model, tops.TernaryConfig(weights="int8"))
    tops.calibrate(model, [x])
    assert all(layer.calls == 1 for layer in layers(model).values())
    fake = model(x)
    assert not torch.equal(fake, exact)  # int8 weights, and not the latent ones
    assert float((fake - exact).abs().max() / exact.abs().max()) < 0.05
    made = tops.compile(model, x[:2])(x.numpy())
    np.testing.assert_allclose(made, fake.numpy(), atol=0.04 * float(exact.abs().max()))


@torch.no_grad()
def test_programs_of_functional_calls_are_exact_with_float_activations(
    case: tuple[nn.Sequential, Tensor],
) -> None:
    model, x = case
    config = tops.TernaryConfig(weights="int8", activations="float32")
    tops.quantize_(model, tops.plan(model, config, rules={"*": config}))
    made = tops.compile(model, x[:2])(x.numpy())
    wanted = model(x)
    np.testing.assert_allclose(made, wanted.numpy(), atol=1e-5 * float(wanted.abs().max()))


def test_masks_and_gradients_reach_functional_calls() -> None:
    model, x = CASES["beside"]()
    tops.quantize_(model, tops.TernaryConfig(weights="ternary", zeros=0.5))
    layer = layers(model)["0.qkv"]
    with torch.no_grad():
        layer.mask[:4] = False
        layer.phase = "float"
        half = model[0].qkv.weight
    y = model[0](x)
    y.sum().backward()
    assert half.grad is not None and float(half.grad[:4].abs().sum()) == 0
    assert float(half.grad[4:].abs().sum()) > 0 and model[0].q_bias.grad is not None


@torch.no_grad()
def test_copies_and_pickles_call_their_own_layers() -> None:
    model, x = CASES["own"]()
    tops.quantize_(model, tops.TernaryConfig(weights="int8"))
    tops.quantize_(model, tops.TernaryConfig(weights="int8"))  # changes nothing
    wanted = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), wanted)
        layers(twin)["0.qkv"].weight.mul_(2.0)
        assert not torch.equal(twin(x), wanted)
    assert torch.equal(model(x), wanted)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), wanted)


@torch.no_grad()
def test_another_geometry_is_no_call_of_the_layer_and_packed_layers_say_why() -> None:
    model, x = CASES["convolutions"]()
    forward = Strided.forward

    def dilated(self: Strided, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight, self.conv.bias, dilation=2)

    try:
        Strided.forward = dilated  # type: ignore[method-assign]
        tops.quantize_(model, tops.TernaryConfig(weights="int8"))
        with pytest.raises(UnsupportedModel, match="quantized layers that run"):
            tops.calibrate(model, [x])
    finally:
        Strided.forward = forward  # type: ignore[method-assign]
    model, x = CASES["own"]()
    tops.quantize_(model, tops.TernaryConfig(weights="int8"))
    tops.calibrate(model, [x])
    with pytest.raises(UnsupportedModel, match="hands its weight to a function"):
        tops.pack_(model)

# SPDX-License-Identifier: Apache-2.0
"""Functions of floats that have kernels: accuracy everywhere, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import Builder
from torch import nn

import ternary_ops as tops
from ternary_ops import reference, runtime


def exact(name: str, x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        sigmoid = np.where(wide >= 0, 1, np.exp(np.minimum(wide, 0))) / (1 + np.exp(-np.abs(wide)))
    return {
        "sigmoid": sigmoid,
        "silu": wide * sigmoid,
        "gelu": wide * torch.special.erfc(torch.from_numpy(-wide / np.sqrt(2))).numpy() / 2,
        "leaky": np.where(wide >= 0, wide, wide * np.float64(np.float32(0.1))),
    }[name]


MODULES = {
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "leaky": nn.LeakyReLU(0.1),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("width", [1, 7, 16, 37])
def test_within_a_few_units_in_the_last_place(name: str, width: int) -> None:
    # Pass-through in front: a function of the input alone would be another node's work.
    first = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    program = tops.compile(nn.Sequential(first, MODULES[name]).eval(), torch.zeros(1, 1, 2, width))
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.standard_normal(40 * width) * 10.0 ** rng.integers(-6, 3, 40 * width),
            np.linspace(-85, 85, 20 * width),
            np.tile([0.0, -0.0, 1e-30, -1e-30], width),
        ]
    ).astype(np.float32)
    x = values.reshape(1, 1, -1, width)
    wanted = exact(name, x)
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            found = program(x)
        off = np.abs(found - wanted)
        assert (off <= 4e-7 * np.abs(wanted) + 1e-33).all(), (isa, float(off.max()))


@pytest.mark.parametrize("name", MODULES)
def test_what_is_not_finite(name: str) -> None:
    first = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    program = tops.compile(nn.Sequential(first, MODULES[name]).eval(), torch.zeros(1, 1, 1, 3))
    x = np.array([[[[np.nan, np.inf, -3e38]]]], np.float32)
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            found = program(x)[0, 0, 0]
        assert np.isnan(found[0])
        assert found[1] == (1.0 if name == "sigmoid" else np.inf)
        assert {
            "sigmoid": 0 <= found[2] < 1e-36,
            "silu": abs(found[2]) < 30,
            "gelu": abs(found[2]) < 1e-36,
            "leaky": found[2] == np.float32(-3e38) * np.float32(0.1),
        }[name]


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_a_slope_behind_a_convolution_has_the_bits_of_a_pass_of_its_own(zeros: float) -> None:
    """The last slope against one taken afterwards, of the values without it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 9), (9, 16), (16, 5)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.1)]
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight[:, torch.rand(layer.weight.shape[1]) < zeros] = 0.0
    sample = torch.zeros(1, 3, 8, 8)
    program = tops.compile(nn.Sequential(*layers).eval(), sample)
    before = tops.compile(nn.Sequential(*layers[:-1]).eval(), sample)
    x = torch.randn(2, 3, 13, 21).numpy()
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            np.testing.assert_array_equal(program(x), program.trace(x)[-1])
            y = before(x)
            bent = np.where(y < 0, y * np.float32(0.1), y)
            np.testing.assert_array_equal(program(x), bent)


def test_a_map_that_others_read_keeps_its_negative_values() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return torch.nn.functional.leaky_relu(y, 0.1) + y

    model = Both().eval()
    x = torch.randn(1, 2, 5, 6)
    with torch.no_grad():
        wanted = model(x).numpy()
    program = tops.compile(model, x)
    np.testing.assert_allclose(program(x.numpy()), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 33, 2000])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm_of_many_channels_and_far_from_zero(channels: int, mean: float) -> None:
    b = Builder(0, c=channels, rank=3)
    b("layer_norm", 0, w=b.weight("float", channels, 1, zeros=0.0), eps=1e-6)
    graph = b.graph()
    w = graph.weights[0]
    x = np.random.default_rng(0).normal(mean, 1.5, (2, 19, channels)).astype(np.float32)
    wanted = reference.layer_norm(x.swapaxes(1, 2), w.array.ravel(), w.bias, 1e-6).swapaxes(1, 2)
    # About twenty roundings of numbers of the size of the normalized ones, their factor and offset.
    eps = float(np.finfo(np.float32).eps)
    size = np.abs(wanted - w.bias) + np.abs(w.array.ravel()) + np.abs(w.bias)
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            found = runtime.Program(graph, x.shape)(x)
        off = np.abs(found - wanted) / (10 * eps * size)
        assert off.max() <= 1, (isa, float(off.max()))

# SPDX-License-Identifier: Apache-2.0
"""Networks over tokens [N, L, C] compile: linear layers, norms and functions, floats and uint8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import error, images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import UnsupportedModel, UnsupportedShape
from ternary_ops.program.interpret import simulate


class Mixer(nn.Module):
    """Norm, two linear layers around a GELU, a residual; then a gate, a concat and a softmax."""

    def __init__(self, width: int = 21) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 40), nn.Linear(40, width)
        self.gate, self.head = nn.Linear(width, width), nn.Linear(2 * width, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        gated = torch.sigmoid(self.gate(x)) * x
        return torch.softmax(self.head(torch.relu(torch.cat([gated, x], 2) - 0.1)), -1)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantized(weights: str) -> nn.Module:
    torch.manual_seed(0)
    model = Mixer().eval()
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(weights, zeros=0.0)))
    tops.calibrate(model, [tokens(4, 9, 21, seed=1), tokens(2, 30, 21, seed=2)])
    for layer in model.modules():
        if isinstance(layer, tops.nn.TernaryLayer):
            layer.phase = "frozen"
    return model


def test_float() -> None:
    torch.manual_seed(0)
    model = Mixer().eval()
    program = tops.compile(model, tokens(3, 7, 21))
    assert program.rank == 3 and all(value.y is None for value in program.graph.values)
    for shape in ((3, 7, 21), (1, 1, 21), (2, 50, 21)):
        assert error(program, model, tokens(*shape, seed=3)) < 1e-5


@pytest.mark.parametrize("weights", ["int8", "ternary"])
def test_integers_equal_the_reference(weights: str, tmp_path: Path) -> None:
    model = quantized(weights)
    program = tops.compile(model, tokens(3, 7, 21))
    kinds = [node.op for node in program.graph.nodes]
    codes = [value.y is not None for value in program.graph.values]
    assert kinds.count("linear") == 4 and codes[kinds.index("layer_norm")]
    x = tokens(3, 13, 21, seed=4)
    wanted = simulate(program.graph, x.numpy())
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            for node, a, b in zip(
                program.graph.nodes, program.trace(x.numpy()), wanted, strict=True
            ):
                assert a.dtype == b.dtype and a.shape == b.shape, (isa, node.op)
                if a.dtype == np.uint8:
                    np.testing.assert_array_equal(a, b, f"{isa} {node.op}")
                else:
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=node.op)
    assert error(program, model, x) < 0.03
    program.save(tmp_path / "tokens.safetensors")
    loaded = runtime.load(tmp_path / "tokens.safetensors")
    np.testing.assert_array_equal(loaded(x.numpy()), program(x.numpy()))


def test_a_packed_network_and_moved_channels_keep_their_bits() -> None:
    model, x = quantized("ternary"), tokens(2, 6, 21, seed=5)
    program = tops.compile(model, x)
    moved = tops.compile(model, x, permute=True)
    np.testing.assert_array_equal(moved(x.numpy()), program(x.numpy()))
    tops.pack_(model)
    np.testing.assert_array_equal(tops.compile(model, x)(x.numpy()), program(x.numpy()))


@pytest.mark.parametrize(
    ("part", "reason"),
    [(nn.LayerNorm((7, 21)), "over one axis"), (nn.Flatten(0, 1), "the output")],
)
def test_what_mixes_tokens_is_refused(part: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        tops.compile(nn.Sequential(part).eval(), tokens(3, 7, 21))


@pytest.mark.parametrize(
    "part", [nn.Softmax(1), nn.PReLU(7, 0.1), nn.BatchNorm1d(7), nn.Linear(7, 4)]
)
def test_what_mixes_tokens_is_made_for_their_number(part: nn.Module) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.part, nn.Linear):
                return self.part(x.transpose(1, 2)).transpose(1, 2)
            return self.part(x)

    for tensor in part.buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    model = Mixed().eval()
    program = tops.compile(model, tokens(3, 7, 21))
    assert error(program, model, tokens(2, 7, 21, seed=3)) < 1e-5
    with pytest.raises(UnsupportedShape, match="7"):
        program(tokens(2, 8, 21).numpy())


class ClassToken(nn.Module):
    """A token much smaller than those it joins, which a norm makes large."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(0.01 * torch.randn(1, 1, 8))
        self.mix, self.norm, self.out = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(x), -1, -1), tokens), 1)
        return self.out(self.norm(tokens + 0.001 * self.mix(tokens))[:, 0])


def test_a_small_class_token_keeps_its_numbers() -> None:
    torch.manual_seed(5)
    x = images(2, 3, 12, 12)
    model = ready(ClassToken(), x, weights="int8")
    assert error(tops.compile(model, x), model, x) < 0.1

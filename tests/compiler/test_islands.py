# SPDX-License-Identifier: Apache-2.0
"""Networks with parts that no program can say: those run in PyTorch, everything else compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from architectures import conv_bn, mobilenet_v2
from small_networks import images, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.compiler.partition import Island, IslandProgram
from ternary_ops.errors import UnsupportedModel, UnsupportedShape


class Flow(nn.Module):
    """Control flow on a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x - 1


class Floor(nn.Module):
    """A function without a program form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(x * 4) / 4


class Skip(nn.Module):
    """A value flows around the part that cannot be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.strange = nn.Conv2d(8, 8, 1), Floor()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.strange(self.conv(x))


class Net(nn.Module):
    def __init__(self, *middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle = conv_bn(3, 8, 3, 2), nn.ModuleList(middle)
        self.last, self.fc = conv_bn(8, 12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.middle:
            x = part(x)
        return self.fc(self.last(x).mean((2, 3)))


CASES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "flow": (lambda: Net(Flow()), ("middle.0",)),
    "function": (lambda: Net(Floor()), ("middle.0",)),
    "module": (lambda: Net(nn.Sequential(conv_bn(8, 8, 1), nn.Softshrink())), ("middle.0.1",)),
    "two": (lambda: Net(Floor(), nn.Conv2d(8, 8, 1), Flow()), ("middle.0", "middle.2")),
    "side by side": (lambda: Net(Floor(), Flow()), ("middle.0", "middle.1")),
    "skip": (lambda: Net(Skip()), ("middle.0",)),
    "first": (lambda: nn.Sequential(nn.Sequential(Flow(), conv_bn(3, 8, 3))), ("0.0",)),
    "last": (lambda: nn.Sequential(conv_bn(3, 8, 3), nn.LogSoftmax(1)), ("1",)),
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_islands_run_between_programs(name: str, quantized: bool) -> None:
    make, islands = CASES[name]
    x = images(2, 3, 9, 11)
    model = make()
    model = ready(model, x, weights="int8") if quantized else model.eval()
    with pytest.raises(UnsupportedModel):
        tops.compile(model, x)
    program = tops.compile(model, x, islands=True)
    assert isinstance(program, IslandProgram) and program.islands == islands
    for size in ((2, 3, 9, 11), (1, 3, 12, 8)):
        x = images(*size, seed=1)
        with torch.no_grad():
            want = model(x).numpy()
        got = program(x.numpy())
        assert got.dtype == np.float32
        # the network's own rounding steps make a jump of what is a hair's breadth before them
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=0.1 if quantized else 1e-5)
    for island in islands:
        assert f"torch island {island} (" in program.summary()
    assert any(not isinstance(part, Island) for part in program.parts)
    with pytest.raises(UnsupportedModel, match=islands[0]):
        program.save("anywhere.safetensors")


def test_a_network_without_islands_is_a_plain_program() -> None:
    x = images(1, 3, 17, 20)
    model = mobilenet_v2().eval()
    program = tops.compile(model, x, islands=True)
    assert isinstance(program, tops.Program)
    np.testing.assert_array_equal(program(x.numpy()), tops.compile(model, x)(x.numpy()))


def test_what_is_no_module_of_its_own_is_named() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.floor(self.conv(x))

    with pytest.raises(UnsupportedModel, match=r"own forward: floor\(\)"):
        tops.compile(Root(), images(1, 3, 5, 5), islands=True)
    with pytest.raises(UnsupportedModel, match="own forward"):
        tops.compile(Flow(), images(1, 3, 5, 5), islands=True)


def test_wrong_inputs_are_refused() -> None:
    program = tops.compile(Net(Floor()).eval(), images(1, 3, 9, 9), islands=True)
    for wrong in (images(1, 3, 9, 9), np.ones((1, 3, 9, 9), np.int32), None):
        with pytest.raises(UnsupportedShape):
            program(wrong)
    with pytest.raises(UnsupportedShape):
        program(np.ones((1, 4, 9, 9), np.float32))

# SPDX-License-Identifier: Apache-2.0
"""Networks with parts that no program can say: those run in PyTorch, everything else compiled."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import conv_bn, mobilenet_v2
from small_networks import images, ready
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ternary_ops as tops
from ternary_ops.compiler import work
from ternary_ops.compiler.partition import Island, IslandProgram
from ternary_ops.errors import UnsupportedModel, UnsupportedShape
from ternary_ops.graph.trace import trace


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


class Normed(nn.Module):
    """A function of parameters, which a trace gives a name, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.floor(8 * self.conv(x)) / 8
        return F.group_norm(torch.ceil(8 * x) / 8, 2, self.w, self.b)


class Attention(nn.Module):
    """Three values leave one layer, a fourth flows around them, sizes are read on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.BatchNorm2d(8), nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        n, c, h, w = y.shape
        q, k, v = self.qkv(y).reshape(n, 3, c, h * w).unbind(1)
        y = v @ torch.softmax(q.transpose(1, 2) @ k, -1)
        return x + self.proj(torch.floor(32 * y.reshape(n, c, h, w)) / 32)


class ChannelsLast(nn.Module):
    """Images [N, H, W, C] between operators without a program form."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.floor(32 * x.permute(0, 2, 3, 1)) / 32
        x = torch.relu(self.fc(self.norm(x)))
        return (torch.ceil(32 * x) / 32).permute(0, 3, 1, 2)


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
    "module": (
        lambda: Net(nn.Sequential(conv_bn(8, 8, 1), nn.LocalResponseNorm(3))),
        ("middle.0.1",),
    ),
    "two": (lambda: Net(Floor(), nn.Conv2d(8, 8, 1), Flow()), ("middle.0", "middle.2")),
    "side by side": (lambda: Net(Floor(), Flow()), ("middle.0", "middle.1")),
    "skip": (lambda: Net(Skip()), ("middle.0.strange",)),
    "named": (lambda: Net(Normed(), Floor()), ("middle.0", "middle.1")),
    "nothing between": (lambda: Net(Floor(), nn.Identity(), Flow()), ("middle.0", "middle.2")),
    "channels last": (lambda: Net(ChannelsLast()), ("middle.0",)),
    "tokens": (lambda: Net(Attention()), ("middle.0",)),
    "first": (lambda: nn.Sequential(nn.Sequential(Flow(), conv_bn(3, 8, 3))), ("0.0",)),
    "last": (lambda: nn.Sequential(conv_bn(3, 8, 3), nn.LPPool2d(3, 1)), ("1",)),
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
        assert re.search(rf"torch island .*\b{island}\b.* \(", program.summary())
    assert any(not isinstance(part, Island) for part in program.parts)
    assert 0 <= program.share < 0.5 and "% of the multiply-adds" in repr(program)
    if name == "channels last":
        assert program.share == 0
    with pytest.raises(UnsupportedModel, match=islands[0]):
        program.save("anywhere.safetensors")


def test_a_network_without_islands_is_a_plain_program() -> None:
    x = images(1, 3, 17, 20)
    model = mobilenet_v2().eval()
    program = tops.compile(model, x, islands=True)
    assert isinstance(program, tops.Program)
    np.testing.assert_array_equal(program(x.numpy()), tops.compile(model, x)(x.numpy()))


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.floor(9 * self.conv(x)).mean((2, 3)))


def test_the_models_own_forward_may_be_an_island() -> None:
    model, x = Root().eval(), images(2, 3, 5, 5)
    program = tops.compile(model, x, islands=True)
    assert isinstance(program, IslandProgram) and program.islands == ("",)
    assert [isinstance(part, Island) for part in program.parts] == [False, True, False]
    assert "torch island forward (floor): floor() in forward" in program.summary().replace(
        ", 0.0%", ""
    )
    with torch.no_grad():
        np.testing.assert_allclose(program(x.numpy()), model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_in_the_worst_case_the_whole_network_is_one_island(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, x = Flow(), images(1, 3, 5, 5)
    program = tops.compile(model, x, islands=True)
    assert isinstance(program, IslandProgram) and program.islands == ("",) and program.share == 1
    assert "100.0% of the multiply-adds in 1 islands in PyTorch: forward" in caplog.text
    assert "control flow" in program.summary()
    given = x.numpy().copy()
    np.testing.assert_array_equal(program(given), model(x).numpy())
    np.testing.assert_array_equal(given, x.numpy())


def test_the_share_of_work_in_islands_is_that_of_their_layers() -> None:
    class Strange(nn.Conv1d):
        """Not a layer of images: 8 x 8 x 1 multiply-adds for each of 6 x 6 pixels."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.floor(super().forward(x.flatten(2))).reshape(x.shape)

    model = nn.Sequential(nn.Conv2d(4, 8, 1), Strange(8, 8, 1), nn.Conv2d(8, 16, 1)).eval()
    program = tops.compile(model, images(1, 4, 6, 6), islands=True)
    assert isinstance(program, IslandProgram)
    assert program.share == pytest.approx(64 / (32 + 64 + 128))
    packed = ready(model, images(1, 4, 6, 6), weights="int8")
    tops.pack_(packed)
    program = tops.compile(packed, images(1, 4, 6, 6), islands=True)
    assert isinstance(program, IslandProgram)
    assert program.share == pytest.approx(64 / (32 + 64 + 128))


class Work(nn.Module):
    """Layers and products of every kind, with what is none between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.line, self.act = nn.Conv1d(6, 4, 3, dilation=2), nn.SELU()
        self.fc, self.norm = nn.Linear(9, 5), nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.act(self.up(F.max_pool2d(self.conv(x), 2))), (0, 1, 2, 0))
        y = self.line(y.mean(2))
        y = F.softmax(y @ y.transpose(1, 2) * 0.1, dim=-1) @ y
        return self.norm(self.fc(y)).amax(1)


def test_multiply_adds_are_those_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Work().eval(), images(2, 4, 17, 22)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    traced = trace(model)
    monkeypatch.setattr(work, "FlopCounterMode", None)  # would load torch's compiler
    work.count_macs(traced, x)
    macs = {n.name: n.meta["macs"] for n in traced.graph.nodes}
    assert 2 * sum(macs.values()) == counter.get_total_flops()
    assert {name for name, count in macs.items() if count} == {
        *("conv", "up", "line", "fc", "matmul", "matmul_1")
    }


def test_a_part_that_refuses_after_all_is_cut_smaller() -> None:
    model = nn.Sequential(*(conv_bn(3 + i, 4 + i, 3) for i in range(5))).eval()
    x = images(1, 3, 9, 9)
    model[2][1].register_forward_hook(lambda module, args, y: torch.floor(8 * y) / 8)
    with pytest.raises(UnsupportedModel, match="hooks that change values"):
        tops.compile(model, x)
    program = tops.compile(model, x, islands=True)
    assert isinstance(program, IslandProgram) and "2.1" in program.islands
    assert program.share < 0.5 and "hooks that change values on 2.1" in program.summary()
    with torch.no_grad():
        np.testing.assert_allclose(program(x.numpy()), model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_ranges_that_are_missing_are_asked_for_and_no_island() -> None:
    model = Net(Floor()).eval()
    tops.quantize_(model, tops.TernaryConfig("int8"))
    with pytest.raises(UnsupportedModel, match="Call calibrate"):
        tops.compile(model, images(1, 3, 9, 9), islands=True)


def test_a_shape_that_depends_on_numbers_is_named() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x[:, 0, 0, 0] > 0].flatten(1)

    model, x = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), Positive()).eval(), images(4, 3, 5, 5)
    program = tops.compile(model, torch.cat([x, -x]), islands=True)
    program(torch.cat([x, -x]).numpy())
    with pytest.raises(UnsupportedShape, match=r"torch island 1 .*\[4, 100\] before"):
        program(torch.cat([x, x]).numpy()[:, :, :, :] + 100 * np.sign(x[0, 0, 0, 0].item()))


def test_what_fails_inside_an_island_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.floor(x.reshape(-1, 4, 5, 5))

    program = tops.compile(
        nn.Sequential(nn.Conv2d(3, 4, 1), Fixed()).eval(), images(1, 3, 5, 5), islands=True
    )
    with pytest.raises(UnsupportedModel, match=r"torch island 1 to run on inputs .*\[1, 4, 6, 6\]"):
        program(images(1, 3, 6, 6).numpy())


def test_wrong_inputs_are_refused() -> None:
    program = tops.compile(Net(Floor()).eval(), images(1, 3, 9, 9), islands=True)
    for wrong in (images(1, 3, 9, 9), np.ones((1, 3, 9, 9), np.int32), None):
        with pytest.raises(UnsupportedShape):
            program(wrong)
    with pytest.raises(UnsupportedShape):
        program(np.ones((1, 4, 9, 9), np.float32))

# SPDX-License-Identifier: Apache-2.0
"""PReLU and leaky ReLU as the last step of a convolution; bounds behind what only moves values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Builder
from torch import nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import FormatError
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.interpret import simulate
from ternary_ops.program.serialize import from_index, to_arrays, to_index
from ternary_ops.program.weight import Weight


def ops(program: runtime.Program) -> list[str]:
    return [node.op for node in program.graph.nodes]


def slopes(count: int) -> nn.PReLU:
    prelu = nn.PReLU(count)
    nn.init.uniform_(prelu.weight, -0.5, 1.5)
    return prelu


class Body(nn.Sequential):
    def __init__(self, zeros: float = 0.0) -> None:
        layers: list[nn.Module] = [
            *(nn.Conv2d(3, 9, 3, padding=1), slopes(9)),
            *(nn.Conv2d(9, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.1)),
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16), slopes(1)),
            nn.Conv2d(16, 5, 1),
        ]
        super().__init__(*layers)
        with torch.no_grad():
            for layer in layers:
                if isinstance(layer, nn.Conv2d):
                    layer.weight[torch.rand(layer.weight.shape[:2]) < zeros] = 0.0


@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_they_belong_to_float_convolutions(zeros: float) -> None:
    torch.manual_seed(0)
    model, x = Body(zeros).eval(), torch.randn(2, 3, 13, 21)
    program = tops.compile(model, x)
    assert ops(program) == ["input", *["conv2d"] * 4]
    with torch.no_grad():
        wanted = model(x).numpy()
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            np.testing.assert_allclose(program(x.numpy()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["ternary", "int8"])
@pytest.mark.parametrize("size", [(5, 4), (13, 21)])
@pytest.mark.parametrize(("zeros", "groups"), [(0.0, 1), (0.9, 1), (0.0, 40), (0.3, 2)])
def test_integer_convolutions_round_once(
    kind: str, size: tuple[int, int], zeros: float, groups: int
) -> None:
    """Small maps with channels in the lanes, large ones with pixels; dense, sparse, depthwise."""
    b = Builder(groups, c=40)
    x = b("quantize", 0, y=b.params())
    for count in (40, 1):
        w = b.weight(kind, 40, 40 // groups, 3, 3, zeros=zeros, slopes=count)
        x = b("conv2d", x, w=w, padding=(1, 1), groups=groups, y=b.params())
    w = b.weight(kind, 40, 40, zeros=zeros, slopes=40)
    x = b("conv2d", x, x, w=w, y=b.params())  # behind a residual
    b("conv2d", x, w=b.weight(kind, 40, 40, zeros=zeros, slopes=40))  # to floats
    graph = b.graph()
    image = np.random.default_rng(1).normal(size=(2, 40, *size)).astype(np.float32)
    wanted = simulate(graph, image)
    for made, value in zip(wanted[2:5], graph.values[2:5], strict=True):
        assert value.y is not None and np.mean(made < value.y[1]) > 0.05  # some are negative
    program = runtime.Program(graph, image.shape)
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            for threads in (1, 3):
                with runtime.num_threads(threads):
                    np.testing.assert_array_equal(program(image), wanted[-1], isa)
            for found, value in zip(program.trace(image), wanted, strict=True):
                np.testing.assert_array_equal(found, value, isa)


def test_ranges_are_those_behind_the_slope() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), slopes(8), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        model[1].weight.fill_(0.01)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    x = torch.randn(4, 3, 12, 12)
    tops.calibrate(model, [x], method="minmax")
    program = tops.compile(model, x)
    assert ops(program) == ["input", "quantize", "conv2d", "max_pool2d", "conv2d"]
    y = program.graph.values[2].y
    assert y is not None and y[1] < 10  # hardly anything is negative
    with torch.no_grad():
        wanted = model(x).numpy()
    np.testing.assert_allclose(program(x.numpy()), wanted, atol=np.abs(wanted).max() / 50)


class Apart(nn.Module):
    """Slopes that do not fuse: others read the sums, a residual or bounds stand between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.slopes, self.more, self.last = slopes(4), slopes(4), slopes(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        a = self.slopes(y) + y
        b = self.more(self.second(a) + x)
        c = torch.clamp(self.last(self.second(b)), -0.2, 0.3)
        return torch.nn.functional.leaky_relu(torch.relu(self.second(c)), 0.3)


def test_the_others_stand_by_themselves() -> None:
    torch.manual_seed(2)
    model, x = Apart().eval(), torch.randn(1, 4, 9, 11)
    program = tops.compile(model, x)
    with torch.no_grad():
        wanted = model(x).numpy()
    np.testing.assert_allclose(program(x.numpy()), wanted, rtol=1e-5, atol=1e-5)
    assert sum(w.slope is not None for w in program.graph.weights) == 1


def test_files_permutations_and_rounding_keep_them(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, x = Body(0.5), torch.randn(2, 3, 12, 12)
    model.eval()
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    tops.calibrate(model, [x])
    program = tops.compile(model, x)
    wanted = program(x.numpy())
    program.save(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(runtime.load(tmp_path / "p.safetensors")(x.numpy()), wanted)
    permuted = tops.compile(model, x, permute=True)
    np.testing.assert_array_equal(permuted(x.numpy()), wanted)
    short = [w.slope for w in program.rounded().graph.weights if w.slope is not None]
    assert len(short) == 3
    for slope in short:
        mantissa = np.frexp(slope.astype(np.float64))[0] * 256
        np.testing.assert_array_equal(mantissa, np.rint(mantissa))


def _one_layer(op: str, slope: np.ndarray, **attrs: object) -> Graph:
    w = Weight("w", "float", np.ones((4, 1, 1, 4), np.float32), None, None, slope)
    rank = 4 if op == "conv2d" else 2
    return Graph(
        (Node("input", (), {"c": 4, "rank": rank}), Node(op, (0,), {"w": 0, **attrs})), (w,)
    )


def test_what_does_not_fit_is_refused() -> None:
    four = np.ones(4, np.float32)
    _one_layer("conv2d", four)
    with pytest.raises(FormatError, match="slopes in a convolution"):
        _one_layer("linear", four)
    with pytest.raises(FormatError, match="slopes in a convolution"):
        _one_layer("conv2d", four, clamp=(0.0, None))
    with pytest.raises(FormatError, match="slope of 4 values"):
        _one_layer("conv2d", np.ones(3, np.float32))
    graph = _one_layer("conv2d", four)
    index, arrays = to_index(graph), to_arrays(graph)
    assert from_index(index, arrays).weights[0].slope is not None
    for vectors, message in ((4, "vectors"), (True, "vectors"), (0, "arrays of weights")):
        index["weights"] = [["w", "float", vectors]]
        with pytest.raises(FormatError, match=message):
            from_index(index, arrays)
    index["weights"] = [["w", "float", 2]]
    with pytest.raises(FormatError, match="the array 0.a of weight"):
        from_index(index, {"0.w": arrays["0.w"]})
    with pytest.raises(FormatError, match="slope: finite numbers"):
        _one_layer("conv2d", np.array([1, np.nan, 0, 0], np.float32))


class Tail(nn.Module):
    def __init__(self, again: bool) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shuffle(self.conv(x))
        bounded = torch.clamp(y, 0.1, 0.4)
        return bounded + y if self.again else bounded


@pytest.mark.parametrize("again", [False, True])
def test_bounds_move_to_what_makes_the_values(again: bool) -> None:
    torch.manual_seed(4)
    model, x = Tail(again).eval(), torch.randn(1, 3, 7, 6)
    program = tops.compile(model, x)
    assert ("clamp" in ops(program)) == again
    with torch.no_grad():
        np.testing.assert_allclose(program(x.numpy()), model(x).numpy(), rtol=1e-5, atol=1e-6)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    tops.calibrate(model, [x])
    if not again:  # the network ends in floats, which no range of 8 bits cuts
        assert tops.compile(model, x).graph.values[-1].y is None

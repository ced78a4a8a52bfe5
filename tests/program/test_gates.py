# SPDX-License-Identifier: Apache-2.0
"""A map times the sigmoid of a convolution: one step of the program, whatever its numbers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import Builder, example
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import FormatError
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.interpret import simulate
from ternary_ops.program.weight import Weight
from ternary_ops.reference.activations import sigmoid32

ISAS = pytest.mark.parametrize("isa", runtime.available_isas())


def gated(kind: str, residual: bool, stride: int = 1, seed: int = 0, zeros: float = 0.5) -> Graph:
    """A layer whose gate, and residual, another layer makes; stride 2: of another grid than it."""
    b = Builder(seed, c=10)
    u8 = kind != "float"
    y: dict[str, Any] = {"y": b.params()} if u8 else {}
    x = b("quantize", 0, y=b.params()) if u8 else 0
    window = {"stride": (stride, stride), "padding": (1, 1)}
    g = b("conv2d", x, w=b.weight(kind, 14, 10, 3, 3), **window, **y)
    r = [b("conv2d", x, w=b.weight(kind, 14, 10, 3, 3), **window, **y)] if residual else []
    clamp = (-1.0, 2.0) if residual else (None, None)
    weights = b.weight(kind, 14, 10, 3, 3, zeros=zeros)
    z = b("conv2d", x, g, *r, w=weights, gate=True, clamp=clamp, **window, **y)
    b("conv2d", z, w=b.weight(kind, 3, 14, 3, 3), padding=(1, 1))
    return b.graph()


@ISAS
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["float", "int8", "ternary"])
def test_native_equals_the_oracle(kind: str, residual: bool, stride: int, isa: str) -> None:
    for zeros in (0.0, 0.9):
        graph = gated(kind, residual, stride, seed=stride, zeros=zeros)
        for n, h, w in ((1, 13, 21), (2, 6, 40), (3, 1, 1)):
            x = example(graph, n, h, w)
            program = runtime.Program(graph, x.shape)
            with runtime.force_isa(isa), runtime.num_threads(n):
                values = program.trace(x)
                np.testing.assert_array_equal(program(x), values[-1])
            for made, wanted in zip(values, simulate(graph, x), strict=True):
                if kind == "float":
                    np.testing.assert_allclose(made, wanted, rtol=3e-5, atol=3e-5)
                else:
                    np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_bands_give_the_same_bits(kind: str) -> None:
    for stride in (1, 2):
        graph = gated(kind, True, stride)
        x = example(graph, 1, 190, 170)
        program = runtime.Program(graph, x.shape)
        assert program._engine.band(190, 170) > 0
        np.testing.assert_array_equal(program(x), program.trace(x)[-1])


def test_the_sigmoid_of_the_reference_is_one() -> None:
    x = np.concatenate([np.linspace(-100, 100, 100_001), [-np.inf, np.inf, 0.0]]).astype(np.float32)
    exact = 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -700, 700)))
    made = sigmoid32(x)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, exact, rtol=4e-7, atol=1e-37)
    assert np.isnan(sigmoid32(np.array([np.nan], np.float32))).all()


class Attention(nn.Module):
    """variant: which of the forms that networks write."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.inner = nn.Conv2d(12, 12, 1)
        self.last = nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.variant == "squeezed":
            return self.last(x * torch.sigmoid(self.inner(x.mean((2, 3), keepdim=True))))
        mask = torch.sigmoid(self.inner(x))
        if self.variant == "twice":
            return self.last(x * mask + mask)
        y = mask * x if self.variant == "mask first" else x * mask
        if self.variant == "bounded":
            return self.last(torch.relu(y) + x)
        return self.last(y + x if self.variant == "added" else y)


@pytest.mark.parametrize(
    ("variant", "fused"),
    [
        ("plain", 1),
        ("mask first", 1),
        ("added", 1),
        ("bounded", 1),
        ("twice", 0),
        ("squeezed", 0),
    ],
)
@pytest.mark.parametrize("weights", [None, "int8"])
def test_compile_finds_gates(variant: str, fused: int, weights: str | None) -> None:
    model = Attention(variant).eval()
    x = torch.randn(2, 3, 17, 20)
    if weights:
        tops.quantize_(model, tops.plan(model, tops.TernaryConfig(weights)))
        tops.calibrate(model, [x])
    program = tops.compile(model, x)
    found = [node for node in program.graph.nodes if node.attrs.get("gate")]
    assert len(found) == fused
    if fused:
        assert not {"mul", "activation"} & {node.op for node in program.graph.nodes}
        assert len(found[0].inputs) == (3 if variant == "added" else 2)
    with torch.inference_mode():
        wanted = model(x).numpy()
    made = program(x.numpy())
    # A gate in 8 bits loses nothing that training did not see; a table of codes does.
    close = 1e-5 if weights is None else 0.02 if fused else 0.1
    assert np.abs(made - wanted).max() <= close * np.abs(wanted).max()


@pytest.mark.parametrize("added", [False, True])
def test_a_float_gate_of_an_integer_layer_is_read_as_it_is(added: bool) -> None:
    """Nothing says the range of the gate, so that it cannot be uint8."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            g = torch.softmax(self.first(x), 1)
            y = g * torch.sigmoid(self.inner(x))
            return y + g if added else y

    model = Mixed().eval()
    x = torch.randn(1, 3, 12, 12)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    tops.calibrate(model, [x])
    with torch.inference_mode():
        wanted = model(x).numpy()
    program = tops.compile(model, x)
    (gated_node,) = (node for node in program.graph.nodes if node.attrs.get("gate"))
    assert len(gated_node.inputs) == 2 + added
    np.testing.assert_allclose(program(x.numpy()), wanted, rtol=1e-4, atol=1e-4)


def test_a_file_keeps_gates(tmp_path: Path) -> None:
    graph = gated("int8", True)
    x = example(graph, 1, 9, 9)
    program = runtime.Program(graph, x.shape)
    program.save(tmp_path / "p.safetensors")
    loaded = runtime.load(tmp_path / "p.safetensors")
    assert [n.attrs for n in loaded.graph.nodes] == [n.attrs for n in graph.nodes]
    np.testing.assert_array_equal(loaded(x), program(x))


def layer(inputs: tuple[int, ...], slope: bool, **attrs: Any) -> Graph:
    slopes = np.ones(4, np.float32) if slope else None
    w = Weight("w", "float", np.ones((4, 1, 1, 4), np.float32), None, None, slopes)
    return Graph((Node("input", (), {"c": 4}), Node("conv2d", inputs, {"w": 0, **attrs})), (w,))


@pytest.mark.parametrize(
    ("inputs", "slope", "gate"),
    [((0,), False, True), ((0, 0), True, True), ((0, 0, 0), False, False)],
)
def test_what_no_gate_can_be_is_refused(inputs: tuple[int, ...], slope: bool, gate: bool) -> None:
    with pytest.raises(FormatError, match="a gate, which slopes exclude"):
        layer(inputs, slope, gate=gate)
    assert layer((0, 0, 0), False, gate=True)

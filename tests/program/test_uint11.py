# SPDX-License-Identifier: Apache-2.0
"""Layers that read eleven bits: what they are, that every path agrees, and what refuses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Builder
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import interchange, reference, runtime
from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel
from ternary_ops.layout import codes
from ternary_ops.nn import fake_quant
from ternary_ops.program.interpret import simulate
from ternary_ops.program.weight import Weight

ONE = np.ones(1, np.float32)
FINE = tops.TernaryConfig("int8", activations="uint11")


class Net(nn.Module):
    """A head that is read in 8 bits and added as it is, and two fine layers behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)
        self.tail = nn.Conv2d(width, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        head = self.head(x)
        return self.tail(self.mix(torch.relu(self.body(head))) + head)


def quantized(width: int, fine: tuple[str, ...] = ("mix", "tail")) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(width)
    network, x = Net(width).eval(), torch.randn(3, 3, 17, 22)
    plan = tops.plan(network, tops.TernaryConfig("int8"), rules=dict.fromkeys(fine, FINE))
    tops.quantize_(network, plan)
    tops.calibrate(network, [x])
    return network, x


@pytest.mark.parametrize(
    "bounds", [(-3.0, 5.0), (0.0, 2.0), (-1e-3, 0.0), (0.0, 0.0), (-7.0, 1e-9)]
)
def test_codes_are_within_a_sixteenth_of_a_step(bounds: tuple[float, float]) -> None:
    scale, zp = reference.fine_params(*bounds)
    assert 4 <= zp <= 251 or bounds == (0.0, 0.0)
    x = np.random.default_rng(0).uniform(*bounds, (2, 6, 5, 4)).astype(np.float32)
    q = reference.quantize_fine(x, scale, zp).astype(np.float64) - zp
    assert q.shape == (2, 16, 5, 4)
    pairs = q.reshape(2, 2, 2, 4, 5, 4)
    value = (pairs[:, :, 0] + pairs[:, :, 1] / 8).reshape(2, 8, 5, 4) * float(scale)
    assert np.abs(value[:, :6] - x).max() <= float(scale) / 16 * 1.001
    assert not value[:, 6:].any()


def test_codes_of_what_is_no_number_or_far_away() -> None:
    x = np.float32([np.nan, np.inf, -np.inf, 1e30, -1e30]).reshape(1, 1, 1, -1)
    q = reference.quantize_fine(x, 0.5, 100)[0]
    assert q[0, 0].tolist() == [0, 255, 0, 255, 0]
    assert q[4, 0].tolist() == [0, 100, 100, 100, 100]
    b = Builder(0, c=1)
    b("conv2d", b("quantize", 0, y=(0.5, 100), fine=True), w=b.weight("int8", 1, 1, zeros=0))
    program = runtime.Program(b.graph(), (1, 1, 1, 5))
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            assert np.array_equal(program(x), simulate(program.graph, x)[-1], equal_nan=True), isa


def test_filters_stand_beside_an_eighth_of_themselves() -> None:
    w = np.random.default_rng(1).integers(-127, 128, (3, 2, 1, 6)).astype(np.int8)
    fine = codes.fine_filters(w).reshape(3, 2, 1, 2, 2, 4)
    assert np.array_equal(fine[..., 0, :].reshape(3, 2, 1, 8)[..., :6], w)
    assert np.array_equal(fine[..., 1, :].reshape(3, 2, 1, 8)[..., :6], np.rint(w / 8))
    assert not fine[..., 1, :, 2:].any()


@pytest.mark.parametrize("width", [5, 16, 50])
def test_eager_program_and_file_agree(width: int, tmp_path: Path) -> None:
    network, x = quantized(width)
    program = tops.compile(network, x)
    with torch.no_grad():
        expected = network(x).numpy()
    assert sum(bool(node.attrs.get("fine")) for node in program.graph.nodes) == 2
    assert np.array_equal(simulate(program.graph, x.numpy())[-1], expected)
    program.save(tmp_path / "p.safetensors")
    loaded = runtime.load(tmp_path / "p.safetensors")
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            assert np.array_equal(loaded(x.numpy()), expected), isa


@pytest.mark.parametrize("form", ["exact", "qdq"])
def test_onnx(form: str, tmp_path: Path) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession
    pytest.importorskip("onnx")
    network, x = quantized(6)
    program = tops.compile(network, x)
    interchange.save_onnx(program, tmp_path / "net.onnx", form)
    (theirs,) = session(tmp_path / "net.onnx").run(None, {"input": x.numpy()})
    ours = program(x.numpy())
    if form == "exact":
        assert np.array_equal(theirs, ours)
    else:  # a bias in whole steps of the sums, and codes that may be the next
        assert np.abs(theirs - ours).mean() < 3e-3 * np.abs(ours).max()


def test_what_it_is_for() -> None:
    losses = []
    for fine in ((), ("tail",), ("mix", "tail")):
        network, x = quantized(16, fine)
        torch.manual_seed(16)
        with torch.no_grad():
            target = Net(16).eval()(x)
            losses.append(float((network(x) - target).square().mean()))
    assert losses[1] < 0.8 * losses[0]
    assert losses[2] < losses[1]


def test_training_learns_weights_but_no_range() -> None:
    network, x = quantized(8)
    network.train()
    network(x.requires_grad_()).square().mean().backward()
    tail = network.tail
    assert tail.input_range.grad is None
    assert not tail.input_range.requires_grad
    assert tail.weight.grad.abs().max() > 0
    assert x.grad.abs().max() > 0
    with torch.no_grad():  # products of whole values differ by what an eighth of a weight rounds
        trained, fixed = network(x), network.eval()(x)
    assert 0 < (trained - fixed).abs().max() < 0.02 * fixed.abs().max()


def test_tensor_twin_of_the_range() -> None:
    for lo, hi in ((-3.0, 5.0), (0.0, 2.0), (-1.0, 0.0), (-2.0, 1e-3)):
        bounds = torch.tensor([lo, hi])
        scale, zp, _ = fake_quant.affine_params(fake_quant.fine_bounds(bounds))
        wanted = reference.fine_params(*(float(v) for v in bounds))
        assert (np.float32(scale), int(zp)) == wanted


def test_sensitivity_and_fallback_know_them() -> None:
    network, x = quantized(8)
    report = tops.sensitivity(network, [x], parts=("activations",))
    assert {row.form for row in report.rows} == {"uint8", "uint11"}
    changed = str(tops.fallback_(network, [x], min_sqnr=200.0, parts=("activations",)))
    assert "uint11 -> float32" in changed
    assert "uint8 -> float32" in changed


def test_a_layer_that_runs_twice_is_counted_once() -> None:
    network, x = quantized(8)
    report = tops.report(network, x)
    assert [row.name for row in report.layers] == ["head", "body", "mix", "tail"]
    assert report.total("weights") == sum(m.weight.numel() for m in network.children())


def test_named_errors(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="int8.*uint11"):
        tops.TernaryConfig("ternary", activations="uint11")
    with pytest.raises(BadConfig, match="groups=1"):
        tops.nn.TernaryLinear(4, 4, config=FINE)
    with pytest.raises(BadConfig, match="groups=1"):
        tops.nn.TernaryConv2d(4, 4, 3, groups=2, config=FINE)
    network, _ = quantized(8)
    with pytest.raises(UnsupportedModel, match="mix, tail"):
        tops.pack_(network)


def test_hostile_graphs_are_refused() -> None:
    def graph(*nodes: tuple[str, tuple[int, ...], dict[str, object]], kind: str = "int8") -> None:
        b = Builder(0, c=4)
        b("quantize", 0, y=(0.1, 128), fine=True)
        b.weight(kind, 4, 4)
        b.weight("int8", 4, 1)
        for op, inputs, attrs in nodes:
            b(op, *inputs, **attrs)
        b.graph()

    layer = ("conv2d", (1,), {"w": 0})
    with pytest.raises(FormatError, match="reader of eleven bits"):
        graph(("dequantize", (1,), {}))
    with pytest.raises(FormatError, match="reader of eleven bits"):
        graph(layer, ("conv2d", (0, 1), {"w": 0}))
    with pytest.raises(FormatError, match="int8 filters"):
        graph(layer, kind="ternary")
    with pytest.raises(FormatError, match="int8 filters"):
        graph(("conv2d", (1,), {"w": 1, "groups": 4}), layer)
    for y in ((0.1, 3), (0.1, 252)):
        b = Builder(0, c=4)
        b("conv2d", b("quantize", 0, y=y, fine=True), w=b.weight("int8", 4, 4))
        with pytest.raises(FormatError, match="4..251"):
            b.graph()


def test_filters_too_heavy_for_eleven_bits() -> None:
    def graph(channels: int, **attrs: bool) -> None:
        b = Builder(0, c=channels)
        b("conv2d", b("quantize", 0, y=(0.1, 128), **attrs), w=b.weight("int8", 1, channels))
        b.weights[0] = Weight("w", "int8", np.full((1, 1, 1, channels), 127, np.int8), ONE)
        b.graph()

    graph(58_800, fine=True)
    graph(66_000)
    with pytest.raises(FormatError, match="sum to 8421504.*9438000"):
        graph(66_000, fine=True)

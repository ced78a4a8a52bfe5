# SPDX-License-Identifier: Apache-2.0
"""A compiled network computes what its layers say: bit for bit in integers, closely in floats."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import fake_quant
import numpy as np
import pytest
import small_networks as networks
import torch
import torch.nn.functional as F
from small_networks import images, layers_of, ready
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import reference
from ternary_ops.errors import BadWeights, UnsupportedModel, UnsupportedShape
from ternary_ops.models.resnet import BasicBlock, Bottleneck, ResNet
from ternary_ops.program.interpret import simulate
from ternary_ops.quantize import fold_batchnorm_
from ternary_ops.runtime import Program

NETWORKS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    # name: (how to make it, shape to compile with, another shape it must run)
    "chain": (networks.chain, (2, 3, 12, 11), (3, 3, 11, 12)),
    "basic": (lambda: ResNet(BasicBlock, (1, 2), (6, 9), 5), (2, 3, 12, 12), (3, 3, 9, 17)),
    "bottleneck": (lambda: ResNet(Bottleneck, (2, 1), (4, 6), 5), (2, 3, 9, 9), (1, 3, 14, 8)),
    "torchvision": (networks.TorchvisionNet, (1, 3, 33, 29), (2, 3, 40, 32)),
    "preact": (networks.PreActNet, (2, 3, 9, 9), (2, 3, 12, 7)),
    "spellings": (networks.Spellings, (2, 4, 9, 8), (5, 4, 12, 9)),
    "reused": (networks.Reused, (2, 3, 6, 7), (1, 3, 9, 5)),
    "aliased": (networks.Aliased, (2, 3, 6, 7), (1, 3, 9, 5)),
}


def _close(program: Program, model: nn.Module, x: Tensor, bound: float) -> None:
    """Relative to the size of the output: quantized skip connections round where floats do not."""
    with torch.no_grad():
        expected = model(x.clone()).numpy()
    got = program(x.numpy())
    assert got.shape == expected.shape
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected - expected.mean())
    assert error < bound, error


@pytest.mark.parametrize("name", NETWORKS)
def test_program_equals_fake_quantized_network_at_every_node(name: str) -> None:
    make, shape, other = NETWORKS[name]
    x = images(*shape)
    model = ready(make(), x)
    program = tops.compile(model, x)
    integers = 0
    for size in (shape, other):
        x = images(*size, seed=1)
        native = program.trace(x.numpy())
        oracle = simulate(program.graph, x.numpy())
        fake = fake_quant.run(program.graph, x.numpy())
        for i, (a, b, c) in enumerate(zip(native, oracle, fake, strict=True)):
            where = f"node {i} {program.graph.nodes[i].op}"
            assert a.dtype == b.dtype and a.shape == tuple(c.shape), where
            if a.dtype == np.uint8:
                integers += 1
                np.testing.assert_array_equal(a, b, where)
                np.testing.assert_array_equal(a, c.numpy(), where)
            else:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=where)
        _close(program, model, x, 0.1)
    assert integers >= 4


def test_chain_equals_the_trained_layers_bit_for_bit() -> None:
    """Nothing but the layers' own arithmetic: their forward, in eval mode, is the program's."""
    x = images(2, 3, 12, 11)
    model = ready(networks.chain(), x)
    program = tops.compile(model, x)
    fold_batchnorm_(model)
    seen: list[Tensor] = []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        expected = model(x)
    values = program.trace(x.numpy())
    inputs = [node.inputs[0] for node in program.graph.nodes if "w" in node.attrs]
    for i, layer, value in zip(inputs, layers_of(model), seen, strict=True):
        quantized = reference.quantize(value.numpy(), *layer.input_params())
        assert program.graph.values[i].y == tuple(layer.input_params())
        np.testing.assert_array_equal(values[i], quantized, f"node {i}")
    np.testing.assert_array_equal(values[-1], expected.numpy())


@pytest.mark.parametrize("name", NETWORKS)
def test_float_networks(name: str) -> None:
    make, shape, other = NETWORKS[name]
    model = make()
    model.train()
    for _ in range(3):
        model(images(*shape))
    program = tops.compile(model.eval(), images(*shape))
    assert all(value.y is None for value in program.graph.values)
    for size in (shape, other):
        _close(program, model, images(*size, seed=2), 1e-5)


@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_weight_only_networks_stay_float_and_keep_their_codes(activations: str) -> None:
    x = images(2, 3, 12, 12)
    model = ResNet(BasicBlock, (1, 1), (6, 9), 5)
    config = tops.TernaryConfig(zeros=0.0, activations=activations)
    tops.quantize_(model, tops.plan(model, config))
    program = tops.compile(model, x)
    assert all(value.y is None for value in program.graph.values)
    assert {w.kind for w in program.graph.weights} == {"ternary", "int8"}
    _close(program, model.eval(), x, 1e-5)


@pytest.mark.parametrize(
    "floating", ["conv1", "layer1.*", "*.conv2", "layer2.0.downsample.0", "fc"]
)
def test_mixed_networks(floating: str) -> None:
    """Float layers anywhere in an integer network, and the conversions between them."""
    x = images(2, 3, 10, 10)
    model = ResNet(BasicBlock, (2, 1), (6, 8), 5)
    rules = {floating: tops.TernaryConfig(weights="float")}
    program = tops.compile(ready(model, x, rules), x)
    kinds = {w.kind for w in program.graph.weights}
    assert "float" in kinds and "ternary" in kinds
    _close(program, model, images(3, 3, 13, 9, seed=3), 0.1)
    for a, b in zip(program.trace(x.numpy()), simulate(program.graph, x.numpy()), strict=True):
        # a float sum that lands on a rounding boundary may move a code by one
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=1e-5, atol=1.0)


def test_packed_and_loaded_networks_compile_to_the_same_program(tmp_path: Path) -> None:
    x = images(2, 3, 12, 12)
    model = ready(ResNet(BasicBlock, (1, 1), (6, 9), 5), x)
    program = tops.compile(model, x)
    tops.pack_(model)
    tops.save(model, tmp_path / "weights.safetensors")
    fresh = ResNet(BasicBlock, (1, 1), (6, 9), 5)
    for packed in (model, tops.load(tmp_path / "weights.safetensors", fresh)):
        again = tops.compile(packed, x)
        assert again.graph.nodes == program.graph.nodes
        np.testing.assert_array_equal(again(x.numpy()), program(x.numpy()))


def test_every_phase_compiles_from_the_codes() -> None:
    x = images(2, 3, 12, 11)
    model = ready(networks.chain(), x)
    expected = tops.compile(model, x)(x.numpy())
    for layer in layers_of(model):
        layer.phase = "float"
    np.testing.assert_array_equal(tops.compile(model, x)(x.numpy()), expected)
    for layer in layers_of(model):
        layer.phase = "frozen"
    frozen = tops.compile(model, x)
    fold_batchnorm_(model)
    with torch.no_grad():
        np.testing.assert_array_equal(frozen(x.numpy()), model(x).numpy())


def test_the_model_is_left_alone() -> None:
    x = images(2, 3, 12, 12)
    model = ready(ResNet(BasicBlock, (1,), (6,), 5), x).train()
    before = copy.deepcopy(model.state_dict())
    given = x.clone()
    tops.compile(model, x)
    assert model.training and torch.equal(x, given)
    after = model.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) or value.isnan().any(), key


def test_residuals_fuse_and_no_float_lies_between_layers() -> None:
    x = images(1, 3, 32, 32)
    program = tops.compile(ready(networks.TorchvisionNet(), x), x)
    ops = [node.op for node in program.graph.nodes]
    assert "add" not in ops and "clamp" not in ops and "dequantize" not in ops
    assert ops.count("quantize") == 1
    assert sum(len(node.inputs) == 2 for node in program.graph.nodes) == 3
    middle = program.graph.values[1:-1]
    assert all(value.y is not None for value in middle)
    relu = [n for n in program.graph.nodes if n.attrs.get("clamp", (None,))[0] == 0.0]
    assert len(relu) == 1 + 3 * 3


def test_widest_range_wins() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.a(x) + self.b(F.max_pool2d(x, 1))

    x = images(1, 3, 4, 4)
    model = ready(Two(), x)
    with torch.no_grad():
        model.a.input_range.copy_(torch.tensor([-1.0, 2.0]))
        model.b.input_range.copy_(torch.tensor([0.0, 5.0]))
    program = tops.compile(model, x)
    scale, zp = reference.affine_params(-1.0, 5.0)
    written = [node.attrs["y"] for node in program.graph.nodes if node.op == "conv2d"]
    assert written[0] == (pytest.approx(float(scale), rel=1e-6), zp)


class _Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.LPPool2d(2, 1))
        self.offset = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        tall = torch.cat([self.block(x), self.act(x)], 2)
        left, _ = tall.chunk(2, 2)
        x = F.pad(F.interpolate(x, scale_factor=1.3) + self.offset, (1, 1, 1, 1))
        return torch.floor(x).sum() + F.relu(left) / 2 + left.cumsum(3)


def test_one_error_lists_every_unsupported_part() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        tops.compile(_Unsupported(), images(1, 3, 5, 5))
    message = str(caught.value)
    wanted = (
        "LocalResponseNorm: there is no program op for it; in act (test_compile.py:",
        "LPPool2d: there is no program op for it; in block.1 (test_compile.py:",
        "interpolate()",
        "cumsum()",
    )
    for part in (
        *wanted,
        "floor()",
        "float32 numbers",
        "Supported: Conv2d",
    ):
        assert part in message, part
    assert "relu" not in message.partition("Supported")[0] and "getitem" not in message


def _wrong(name: str) -> nn.Module:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return {
                "alpha": lambda: torch.add(y, y, alpha=2),
                "sums": lambda: y.cumsum(1),
                "reshape": lambda: y.reshape(1, 2, -1),
                "batch": lambda: y.view(1, 100),
                "mean": lambda: y.mean((0, 1)),
                "tuple": lambda: (y, y),
                "indices": lambda: F.max_pool2d(y, 2, return_indices=True)[0],
                "flow": lambda: y if y.sum() > 0 else x,
                "where": lambda: torch.where(y > 0, y, x.sum()),
                "divisor": lambda: F.adaptive_avg_pool2d(y, (None, 2)),
                "input": lambda: x,
            }[name]()

    return Wrong()


@pytest.mark.parametrize(
    "name",
    "alpha sums reshape batch mean tuple indices flow where divisor input".split(),
)
def test_what_no_program_can_say_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModel):
        tops.compile(_wrong(name), images(1, 3, 5, 5))


def test_tricks_that_tracing_misses_are_refused() -> None:
    class Trick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            skip = x
            x += F.relu(x)
            return x + skip

    with pytest.raises(UnsupportedModel, match="another result"):
        tops.compile(Trick(), images(1, 3, 5, 5))


def test_unset_ranges_are_named() -> None:
    x = images(2, 3, 12, 12)
    model = ResNet(BasicBlock, (1, 1), (6, 9), 5)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.0)))
    with pytest.raises(UnsupportedModel, match="calibrate") as caught:
        tops.compile(model, x)
    assert "layer2.0.conv1" in str(caught.value) and "fc" in str(caught.value)
    tops.calibrate(model, [x])
    with torch.no_grad():
        model.get_submodule("layer2.0.downsample.0").output_range.fill_(float("nan"))
        model.get_submodule("layer1.0.conv2").input_range.fill_(float("nan"))
    with pytest.raises(UnsupportedModel) as caught:
        tops.compile(model, x)
    assert "none for layer1.0.conv2, layer2.0.downsample.0;" in str(caught.value)


def test_bad_weights_and_bad_examples() -> None:
    x = images(2, 3, 12, 11)
    for example in (x[0, 0, 0], x[None], x.to(torch.uint8), x.numpy(), None, [x]):
        with pytest.raises(UnsupportedShape):
            tops.compile(networks.chain(), example)
    with pytest.raises(UnsupportedModel, match="rank 4|4D"):  # tokens to convolutions
        tops.compile(networks.chain(), x[0])
    model = networks.chain().eval()
    with torch.no_grad():
        model[8].weight[3, 0, 1, 2] = float("nan")
    with pytest.raises(BadWeights, match=r"in 8, .*\(3, 0, 1, 2\)"):
        tops.compile(model, x)


def test_a_linear_network_and_half_precision() -> None:
    x = images(3, 20)
    model = ready(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4)), x)
    program = tops.compile(model, x.double())
    assert program.rank == 2 and program.channels == 20
    with torch.no_grad():
        np.testing.assert_array_equal(program(x.numpy()), model(x).numpy())
    half = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).half()
    assert tops.compile(half, images(1, 3, 5, 5)).graph.weights[0].kind == "float"

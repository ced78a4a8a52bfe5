# SPDX-License-Identifier: Apache-2.0
"""Quantized networks under torch.compile, torch.export, autocast, DDP, deepcopy and state dicts."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ternary_ops.errors import BadWeights, UnsupportedModel
from ternary_ops.nn import PackedConv2d, PackedLinear, TernaryConv2d, TernaryLayer, TernaryLinear
from ternary_ops.quantize import TernaryConfig, calibrate, pack_, plan, quantize_

PHASES = ["float", "ternary", "frozen"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding="valid", bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv2(torch.relu(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 9, 9)


def network(calibrated: bool = True, activations: str = "uint8") -> Net:
    model = Net()
    config = TernaryConfig(activations=activations)
    quantize_(model, plan(model, config))
    for layer in layers(model):
        layer.mask &= torch.rand(layer.mask.shape) < 0.8
    if calibrated:
        calibrate(model, [images()])
    return model


def layers(model: nn.Module) -> list[TernaryLayer]:
    return [m for m in model.modules() if isinstance(m, TernaryLayer)]


def set_phase(model: nn.Module, phase: str) -> None:
    for layer in layers(model):
        layer.phase = phase


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).float().square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compile_without_breaks_follows_the_phases() -> None:
    """The graph alone (aot_eager): one compilation of C++ is in the next test."""
    model = network().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for phase in PHASES:
        set_phase(model, phase)
        x = images()
        assert torch.equal(compiled(x), model(x)), phase
        want, got = gradients(model, x), gradients(compiled, x)
        for name, grad in want.items():
            torch.testing.assert_close(got[f"_orig_mod.{name}"], grad)


def test_a_graph_compiled_for_another_phase_says_so_or_is_made_anew() -> None:
    model, x = network().eval(), images()
    other = copy.deepcopy(model)
    set_phase(model, "ternary")
    set_phase(other, "float")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    for mine, its in zip(model.buffers(), other.buffers(), strict=True):
        mine.copy_(its)
    with pytest.raises(
        RuntimeError, match="phase 'ternary', which this graph was compiled for, got another"
    ):
        compiled(x)
    compiled.eval()
    torch.testing.assert_close(compiled(x), other(x))


def test_inductor_keeps_integers_exact() -> None:
    layer = network().conv2
    x = torch.rand(2, 8, 9, 9) * 2
    compiled = torch.compile(layer, fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    layer.input_range.data.fill_(float("nan"))  # no recompilation: the graph asks the tensor
    torch.testing.assert_close(compiled(x), layer(x))


def test_no_recompilation_over_batch_sizes() -> None:
    model = network().eval()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for n in (2, 3, 5, 7, 11):
        x = images(n)
        assert torch.equal(compiled(x), model(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("calibrated", [True, False])
def test_export(calibrated: bool, tmp_path: Path) -> None:
    model = network(calibrated).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for n in (2, 5):
        x = images(n)
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("phase", PHASES)
def test_autocast(phase: str) -> None:
    model = network()
    set_phase(model, phase)
    x = images()
    layer = model.conv2
    inner = torch.rand(2, 8, 9, 9)
    full = layer(inner)
    with torch.autocast("cpu", torch.bfloat16):
        twin = nn.functional.conv2d(inner, layer.weight)
        assert layer(inner).dtype == twin.dtype == torch.bfloat16
        # The sums are those of float32: one rounding at the end is all that autocast adds.
        assert torch.equal(layer(inner), full.to(torch.bfloat16))
        grads = gradients(model, x)
        assert layer(inner.double()).dtype == torch.float64
    assert grads.keys() == dict(model.named_parameters()).keys()
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in grads.values())


@pytest.mark.parametrize("phase", PHASES)
def test_autocast_trains_in_its_own_precision_until_codes_and_ranges_are_fixed(phase: str) -> None:
    layer = network(calibrated=False).conv2.train()
    layer.phase = phase
    x = torch.randn(2, 8, 9, 9)
    codes, scale = layer.integer_weight()
    full = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        trained, judged = layer(x), layer.eval()(x)
    assert torch.equal(judged, full.to(torch.bfloat16))
    if phase == "frozen":
        assert torch.equal(trained, judged)
        return
    real = layer.weight * layer.mask if phase == "float" else codes * scale.view(-1, 1, 1, 1)
    half = nn.functional.conv2d(x.bfloat16(), real.bfloat16(), stride=2)
    torch.testing.assert_close(trained, half, rtol=2**-7, atol=2**-7)
    assert not torch.equal(trained, judged)


def test_training_under_a_gradient_scaler_lowers_the_loss() -> None:
    model = network()
    y = torch.randint(5, (32,))
    x = images(32) + y.view(-1, 1, 1, 1) / 2
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize("phase", PHASES)
def test_state_dict_and_deepcopy_of_a_network(phase: str) -> None:
    model = network()
    set_phase(model, phase)
    gradients(model, images())
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.eval()
    fresh = Net()
    quantize_(fresh, plan(fresh, TernaryConfig()))
    fresh.load_state_dict(model.state_dict(), strict=True)
    x = images()
    for twin in (fresh.eval(), copy.deepcopy(model)):
        assert torch.equal(twin(x), model(x))
        assert [layer.phase for layer in layers(twin)] == [phase] * 3
    twin.conv2.weight.data.zero_()
    assert model.conv2.weight.any()


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("calibrated", "activations"), [(True, "uint8"), (False, "uint8"), (False, "float32")]
)
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(calibrated: bool, activations: str) -> None:
    model = network(calibrated, activations)
    parallel = nn.parallel.DistributedDataParallel(model)
    x = images()
    for phase in PHASES:
        set_phase(model, phase)
        want = gradients(copy.deepcopy(model), x)
        for _ in range(2):  # a parameter left unused would fail in the second backward
            got = gradients(parallel, x)
        for name, grad in want.items():
            torch.testing.assert_close(got[f"module.{name}"], grad)


def test_packing_folds_and_computes_the_same() -> None:
    model = network()
    for _ in range(3):
        model.train()(images(8))  # BatchNorm statistics
    calibrate(model, [images(16)])
    model.eval()
    x = images(16)
    want = model(x)
    packed = copy.deepcopy(model)
    assert pack_(packed) is packed
    assert [type(m) for m in (packed.conv1, packed.conv2, packed.bn, packed.fc)] == [
        PackedConv2d,
        PackedConv2d,
        nn.Identity,
        PackedLinear,
    ]
    assert packed._tops_folded == ["bn"] and packed.fc.training is False
    # Folding rounds: an input of `fc` may fall on the other side of a step.
    assert (packed(x) - want).abs().max() < 0.02 * want.abs().max()
    conv1 = packed.conv1
    assert pack_(packed).conv1 is conv1


@pytest.mark.parametrize("weights", ["ternary", "int8"])
@pytest.mark.parametrize("phase", ["ternary", "frozen"])
def test_a_packed_layer_equals_the_training_forward_bit_for_bit(weights: str, phase: str) -> None:
    config = TernaryConfig(weights=weights)
    conv = TernaryConv2d(6, 10, 3, 2, 1, config=config)
    linear = TernaryLinear(33, 7, config=config)
    model = nn.Sequential(conv, nn.Flatten(), nn.ReLU(), nn.Identity())
    both = nn.ModuleList([model, nn.Sequential(linear)])
    for layer, lo in ((conv, -1.5), (linear, 0.0)):
        layer.input_range.data.copy_(torch.tensor([lo, 2.0]))
        layer.mask &= torch.rand(layer.mask.shape) < 0.7
        layer.phase = phase
    x, rows = torch.randn(3, 6, 7, 8), torch.randn(5, 33)
    want = conv(x).detach(), linear(rows).detach()
    pack_(both)
    assert torch.equal(both[0][0](x), want[0])
    assert torch.equal(both[1][0](rows), want[1])


def test_packing_refuses_and_changes_nothing() -> None:
    model = network(calibrated=False)
    with pytest.raises(UnsupportedModel, match="conv1, conv2, fc"):
        pack_(model)
    calibrate(model, [images()])
    model.conv2.weight.data[0, 0, 1, 2] = float("inf")
    with pytest.raises(BadWeights, match=r"conv2\.weight\[0, 0, 1, 2\]"):
        pack_(model)
    assert isinstance(model.bn, nn.BatchNorm2d) and len(layers(model)) == 3
    with pytest.raises(UnsupportedModel, match="quantize_"):
        pack_(Net())

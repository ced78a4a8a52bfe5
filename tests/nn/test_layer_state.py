# SPDX-License-Identifier: Apache-2.0
"""What layers remember: one owner, whatever writes into it."""

from __future__ import annotations

import copy
import io

import pytest
import state_networks as states
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel, UnsupportedShape
from ternary_ops.nn import BlockSparseLinear, PackedLinear, TernaryLinear

PHASES = ("float", "ternary", "frozen")


def layer(phase: str = "ternary", **config: object) -> TernaryLinear:
    torch.manual_seed(0)
    made = TernaryLinear(24, 6, config=tops.TernaryConfig(**{"zeros": 0.5, **config}))
    made.input_range = torch.tensor([-2.0, 3.0])
    made.mask = torch.rand(made.weight.shape) < 0.6
    made.phase = phase
    return made


def mixed(a: nn.Module, b: nn.Module, share: float) -> nn.Module:
    """A copy of a with share of the way gone to b, in every float tensor."""
    made = copy.deepcopy(a)
    with torch.no_grad():
        for value, other in zip(made.state_dict().values(), b.state_dict().values(), strict=True):
            value.lerp_(other, share)
    return made


def test_what_is_written_into_a_derived_tensor_reaches_the_layer() -> None:
    net, keep = layer("frozen"), torch.rand(6, 24) < 0.5
    net.mask.copy_(keep)
    assert torch.equal(net.mask, keep)
    net.mask &= torch.rand(6, 24) < 0.5
    net.mask[0] = True
    assert net.mask[0].all() and not net.mask[1:][~keep[1:]].any()
    codes = -net.codes.clone()
    net.codes.copy_(codes)
    assert torch.equal(net.codes, codes) and torch.equal(net.ternary()[0], codes)
    net.input_range.data.copy_(torch.tensor([-1.0, 2.0]))
    with torch.no_grad():
        net.input_range[1] *= 3
    assert net.input_range.tolist() == [-1.0, 6.0]
    net.output_range.copy_(torch.tensor([0.0, 2.0]))
    assert net.output_range.tolist() == [0.0, 2.0]
    net.input_range.data.fill_(float("nan"))
    assert net.input_params() is None and all(p.isfinite().all() for p in net.parameters())
    assert not net.input_range.requires_grad_(False).requires_grad
    assert not net.input_shift.requires_grad
    assert type(~net.mask) is Tensor and type(copy.deepcopy(net.mask)) is Tensor
    file = io.BytesIO()
    torch.save({"mask": net.mask}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["mask"], net.mask)


def test_what_does_not_fit_is_named() -> None:
    net = layer("ternary")
    with pytest.raises(BadConfig, match='phase "frozen" where codes are set'):
        net.codes = torch.ones(6, 24)
    with pytest.raises(UnsupportedShape, match="weight's shape"):
        net.mask = torch.ones(6, 1)
    net.phase = "frozen"
    with pytest.raises(UnsupportedShape, match="weight's shape"):
        net.codes = torch.ones(24)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_state_survives_every_way_of_copying(phase: str, weights: str) -> None:
    net, x = layer(phase, weights=weights), torch.randn(5, 24)
    y = net(x)
    copied = layer("float" if phase != "float" else "frozen", weights=weights)
    for mine, its in zip(copied.state_dict().values(), net.state_dict().values(), strict=True):
        mine.copy_(its)
    hidden = layer(weights=weights)
    for mine, its in zip(hidden.parameters(), net.parameters(), strict=True):
        mine.data.copy_(its.data)  # the way that PyTorch does not count
    for mine, its in zip(hidden.buffers(), net.buffers(), strict=True):
        mine.data.copy_(its.data)
    called = torch.func.functional_call(layer(weights=weights), net.state_dict(), (x,))
    assert torch.equal(called, y)
    half = layer(weights=weights)
    half.load_state_dict({k: v.half() for k, v in net.state_dict().items()})
    for twin in (copied, hidden, half):
        assert twin.phase == phase and torch.equal(twin.mask, net.mask)
        assert torch.equal(twin.codes, net.codes)
    assert torch.equal(copied(x), y) and torch.equal(hidden(x), y)
    cast = copy.deepcopy(net).half()
    assert torch.equal(cast.codes, net.codes) and torch.equal(cast.mask, net.mask)
    assert cast.marks.dtype == torch.float32 and cast.weight.dtype == torch.float16


@pytest.mark.parametrize("weights", ["ternary", "int8"])
def test_codes_of_different_networks_are_not_averaged(weights: str) -> None:
    a, b, x = (
        layer("ternary", weights=weights),
        layer("ternary", weights=weights),
        torch.ones(1, 24),
    )
    with torch.no_grad():
        b.weight.add_(torch.randn(6, 24) * 0.1)
    a.phase = b.phase = "frozen"
    soup = mixed(a, b, 0.5)
    for use in (lambda: soup(x), soup.integer_weight, lambda: tops.compile(nn.Sequential(soup), x)):
        with pytest.raises(BadWeights, match="whole numbers as frozen codes"):
            use()
    soup.phase = "ternary"
    assert soup(x).isfinite().all()


def test_an_average_of_a_network_that_lets_weights_come_back() -> None:
    """Weights pruned and grown again: the majority counts until the freeze, then the codes do."""
    case = states.CASES["regrown"]
    model = states.network(case)
    optimizer, pruner = states.parts(model, case)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    at_once = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    returned = 0

    def after(step: int) -> None:
        nonlocal returned
        average.update_parameters(model)
        at_once.update_parameters(model)
        for name, net in states.layers(model).items():
            returned += int((net.marks < 0).sum()) if net.phase != "frozen" else 0
            assert torch.equal(states.layers(at_once.module)[name].mask, net.mask)
            if net.phase == "frozen":
                twin = states.layers(average.module)[name]
                assert torch.equal(twin.mask, net.mask) and torch.equal(twin.codes, net.codes)
            else:
                share = states.layers(average.module)[name].mask.float().mean()
                assert abs(share - net.mask.float().mean()) < 0.2

    states.train(model, optimizer, pruner, range(states.STEPS), after)
    assert returned > 0  # some weights did come back


@pytest.mark.parametrize("decay", [0.9999, 0.99998])
def test_int8_codes_are_exact_in_averages_of_long_memory(decay: float) -> None:
    net = layer("ternary", weights="int8")
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    average.update_parameters(net)
    net.phase = "frozen"
    for step in range(3000):
        average.update_parameters(net)
        if step in (0, 1, 10, 100, 2999):
            assert torch.equal(average.module.integer_weight()[0], net.integer_weight()[0]), step


def test_a_copy_of_a_float_network_gets_the_zeros_of_its_pruner() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = tops.prune.Pruner(model, total_steps=10, zeros=0.8, optimizer=optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(10):
        model(torch.randn(8, 24)).square().mean().backward()
        optimizer.step()
        pruner.step()
        average.update_parameters(model)
    made = average.module
    assert not torch.equal(made[0].weight == 0, model[0].weight == 0)
    pruner.mask_(made)
    for a, b in zip(made.parameters(), model.parameters(), strict=True):
        if a.ndim == 2:
            assert torch.equal(a == 0, b == 0)
    with pytest.raises(UnsupportedModel, match="with a weight '0'"):
        pruner.mask_(average)


def test_integers_of_inference_layers_are_not_averaged_in_silence() -> None:
    """torch's average truncates 3 * 0.9 + 3 * 0.1 to 2: whoever notices must say so."""
    x = torch.randn(5, 24)
    packed = PackedLinear.from_layer(layer("frozen"))
    sparse = BlockSparseLinear.from_float(nn.Linear(24, 16), 0.5, (4, 4)).eval()
    for inner, last in ((packed, nn.Linear(6, 2)), (sparse, nn.Linear(16, 2))):
        model = nn.Sequential(inner, last).eval()
        y = model(x)
        copied = AveragedModel(model)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        for _ in range(40):
            copied.update_parameters(model)
            average.update_parameters(model)
        torch.testing.assert_close(copied(x), y)
        integers = [b for b in model.buffers() if not b.is_floating_point() and b.ndim]
        theirs = [b for b in average.module.buffers() if not b.is_floating_point() and b.ndim]
        assert any(not torch.equal(a, b) for a, b in zip(integers, theirs, strict=True))
        with pytest.raises(BadWeights, match="loading or refresh"):
            average(x)
        average.module.load_state_dict(model.state_dict())
        assert torch.equal(average(x), y)


def test_looking_at_a_network_leaves_its_state_as_it_is() -> None:
    model, x = states.network(states.CASES["frozen"]), states.batch(0)[0]
    tops.calibrate(model, [x])
    with torch.no_grad():
        states.layers(model)["2"].input_shift.fill_(0.125)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tops.sensitivity(model, [x])
    with pytest.raises(UnsupportedModel):
        tops.fallback_(model, [x], min_sqnr=300.0)
    with pytest.raises(UnsupportedModel):
        tops.calibrate(model, [x * float("nan")])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    tops.prune.reconstruct_(model, [x])
    assert not any(layer.phase_code.any() for layer in states.layers(model).values())

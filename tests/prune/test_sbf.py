# SPDX-License-Identifier: Apache-2.0
"""SbF: scores are a function of the filters, learned with them, and filters go by them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from channel_networks import image, network
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel
from ternary_ops.program import layer_costs
from ternary_ops.prune import SbF, groups
from ternary_ops.prune.filter_attention import FilterAttention

STEPS = 40


class Net(nn.Module):
    """A stream of one stage and inner groups, all with BatchNorm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a, self.norm_a = nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.norm_b = nn.Conv2d(12, width, 3, padding=1), nn.BatchNorm2d(width)
        self.c, self.last = nn.Conv2d(width, 12, 3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))) + x)
        return self.last(F.relu(self.c(x)).mean((2, 3)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(number: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images whose class is where they are bright."""
    generator = torch.Generator().manual_seed(number)
    y = torch.randint(0, 4, (size,), generator=generator)
    x = torch.randn(size, 2, 8, 8, generator=generator)
    for image_, where in zip(x, y.tolist(), strict=True):
        row, column = divmod(where, 2)
        image_[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 2
    return x, y


def optimizer_of(model: nn.Module, sbf: SbF) -> torch.optim.SGD:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-3)
    optimizer.add_param_group({"params": sbf.parameters(), "weight_decay": 0.0})
    return optimizer


def train(
    model: nn.Module, sbf: SbF, optimizer: Any, steps: range = range(STEPS), bfloat16: bool = False
) -> None:
    model.train()
    for step in steps:
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(x).float(), y) + sbf.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sbf.step()


def disturb(sbf: SbF) -> None:
    """Heads with random parameters, so that scores lie between 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sbf.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 0:
                parameter.sub_(1.0)


@pytest.mark.parametrize("blocks", [("residual", "depthwise"), ("grouped", "dense"), ("gated",)])
@pytest.mark.parametrize("head", ["attention", "gates"])
def test_at_first_every_filter_is_on(blocks: tuple[str, ...], head: str) -> None:
    model, x = network(0, *blocks), image()
    before = model(x)
    sbf = SbF(model, x, 0.1, STEPS, head=head)
    assert all((score == 1).all() for score in sbf.scores().values())
    assert torch.equal(model(x), before)
    assert set(sbf.scores()) == {g.name for g in groups(model, x).free}


def test_permuted_filters_have_permuted_scores() -> None:
    torch.manual_seed(0)
    head = FilterAttention("layer", 12, 27)
    for parameter in head.parameters():
        parameter.data = torch.randn_like(parameter)
    rows, order = torch.randn(12, 27), torch.randperm(12)
    assert head(rows).std() > 0.1
    torch.testing.assert_close(head(rows[order]), head(rows)[order])
    torch.testing.assert_close(head(3 * rows + 0.5), head(rows))  # size and offset do not count


def test_every_head_learns_and_no_layer_is_emptied() -> None:
    model = net()
    sbf = SbF(model, batch(0)[0], 50.0, STEPS)
    optimizer = optimizer_of(model, sbf)
    seen = [torch.zeros_like(p) for p in sbf.parameters()]
    for step in range(STEPS):
        train(model, sbf, optimizer, range(step, step + 1))
        seen = [s + p.grad.abs() for s, p in zip(seen, sbf.parameters(), strict=True)]
    assert all(s.any() for s in seen)
    removal = sbf.finish_(optimizer)
    assert [after for _, _, after in removal.rows] == [4, 4, 4]
    assert not sbf.due and sbf.finished and float(sbf.loss()) == 0


def learned(seed: int, strength: float, twin: bool) -> Tensor:
    """Raw scores of eight filters in a network that had learned its task; the first two have equal
    weights (twin), or nothing reads them.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.linalg.qr(torch.randn(16, 16))[0][:8])
        if twin:
            model[0].weight[1] = model[0].weight[0]
        else:
            model[3].weight[:, :2] = 0
    task = copy.deepcopy(model)
    sbf = SbF(model, torch.randn(2, 16), strength, 302, round_to=1)
    optimizer = optimizer_of(model, sbf)
    for _ in range(150):
        x = torch.randn(64, 16)
        loss = 20 * F.mse_loss(model(x), task(x).detach()) + sbf.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sbf.step()
        if not twin:
            with torch.no_grad():
                model[3].weight[:, :2] = 0
    return sbf.raw_scores()["0"]


@pytest.mark.parametrize("seed", range(2))
def test_useless_filters_go_first(seed: int) -> None:
    assert set(learned(seed, 0.3, twin=False).argsort()[:2].tolist()) == {0, 1}


@pytest.mark.parametrize("seed", range(2))
def test_filters_that_do_the_same_score_less(seed: int) -> None:
    """Free gates show it too: docs/methods/filters.md."""
    raw = learned(seed, 0.15, twin=True)
    assert raw[:2].mean() < raw[2:].mean() - 0.02


def test_a_higher_price_leaves_fewer_parameters() -> None:
    left, widths = [], []
    for strength in (0.02, 0.06, 0.2, 0.6, 2.0):
        model = net()
        sbf = SbF(model, batch(0)[0], strength, 60, round_to=1)
        optimizer = optimizer_of(model, sbf)
        train(model, sbf, optimizer, range(60))
        left.append(sbf.finish_(optimizer).parameters[1])
        widths.append({model.stem.out_channels / 8, model.a.out_channels / 12})
    assert left == sorted(left, reverse=True) and left[0] > left[-1]
    assert any(len(shares) > 1 for shares in widths)  # no setting of single layers


def test_the_least_width_costs_nothing_and_what_is_beyond_it_does_to_the_end() -> None:
    """A group without a price for a moment must not be without one for good: it would come back."""
    model = net()
    sbf = SbF(model, batch(0)[0], 1.0, STEPS)
    price, widths = sbf._price, [float(group.width) for group in sbf.groups]
    narrow = {group.name: 3.0 for group in sbf.groups}  # less than the four that must stay
    for step in range(1, STEPS):
        price.step(step, narrow)
    assert all(share > 0 for share in price.shares)
    parts = [torch.full((group.width,), 4 / group.width) for group in sbf.groups]
    assert float(price.of(parts)) == pytest.approx(0, abs=1e-6)
    before = list(price.shares)
    price.step(STEPS, dict(zip(narrow, widths, strict=True)))  # at the last step too
    assert all(now > then for now, then in zip(price.shares, before, strict=True))
    for part in parts:
        part.requires_grad_()
    wide = [2 * part for part in parts]
    gradients = torch.autograd.grad(price.of(wide), wide)
    for gradient, share in zip(gradients, price.shares, strict=True):
        torch.testing.assert_close(gradient, torch.full_like(gradient, share))


@pytest.mark.parametrize("done", [0, 25, STEPS])
def test_removal_changes_nothing_else(done: int) -> None:
    """Before, between and after scores have turned into the mask."""
    model, x = net(), batch(99)[0]
    sbf = SbF(model, x, 1.0, STEPS, target_params=0.5)
    disturb(sbf)
    optimizer = optimizer_of(model, sbf)
    train(model, sbf, optimizer, range(done))
    live, kept = sbf._live, sbf._choice()
    scores = torch.cat(list(sbf.scores().values()))
    live.mask, live.hardness = sbf._mask(kept) * scores, 1.0
    wanted = model.eval()(x)
    live.mask, live.hardness = (scores, 0.0) if done == 0 else (scores, 1.0)
    whole = model(x)
    sbf._choice = lambda: kept  # type: ignore[method-assign]
    removal = sbf.finish_(optimizer)
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-5)
    if done == STEPS:
        torch.testing.assert_close(model(x), whole, rtol=0, atol=1e-5)
    now = sum(p.numel() for p in model.parameters())
    assert removal.parameters[1] == now <= 0.5 * removal.parameters[0]
    assert len(optimizer.param_groups) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert set(model.state_dict()) == set(net().state_dict())
    program = tops.compile(copy.deepcopy(model), x)
    assert abs(program(x.numpy()) - model(x).detach().numpy()).max() < 1e-4


def test_training_goes_on_with_the_momentum_of_what_is_left() -> None:
    model = net()
    sbf = SbF(model, batch(0)[0], 1.0, STEPS, target_params=0.5)
    optimizer = optimizer_of(model, sbf)
    train(model, sbf, optimizer)
    momentum = optimizer.state[model.a.weight]["momentum_buffer"].clone()
    kept = sbf.finish_(optimizer).kept
    slices = momentum[kept["a"]][:, kept["stem"]]
    assert torch.equal(optimizer.state[model.a.weight]["momentum_buffer"], slices)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, sbf, optimizer, range(STEPS, STEPS + 10))
    for name, parameter in model.named_parameters():
        assert (parameter != before[name]).all(), name


def test_a_state_goes_on_with_the_same_bits() -> None:
    for stop in (7, 25, STEPS):
        model, other = net(), net()
        sbf, again = (SbF(m, batch(0)[0], 1.0, STEPS, target_params=0.6) for m in (model, other))
        optimizer, second = optimizer_of(model, sbf), optimizer_of(other, again)
        train(model, sbf, optimizer, range(stop))
        if stop == STEPS:
            sbf.finish_(optimizer)
        states = copy.deepcopy([sbf.state_dict(), model.state_dict(), optimizer.state_dict()])
        again.load_state_dict(states[0], second)
        other.load_state_dict(states[1])
        second.load_state_dict(states[2])
        for m, s, o in ((model, sbf, optimizer), (other, again, second)):
            train(m, s, o, range(stop, STEPS + 5))
            if s.due:
                s.finish_(o)
        assert model.a.out_channels == other.a.out_channels < 12
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_half_precision_copies_and_accumulated_gradients() -> None:
    model = net()
    sbf = SbF(model, batch(0)[0], 0.5, STEPS)
    optimizer = optimizer_of(model, sbf)
    train(model, sbf, optimizer, range(10), bfloat16=True)
    twin = copy.deepcopy(model)
    x, y = batch(50)
    torch.testing.assert_close(twin(x), model(x))
    for part in (x[:8], x[8:]):
        (F.cross_entropy(model(part), y[:8]) + sbf.loss()).backward()
    assert all(p.grad.isfinite().all() for p in sbf.parameters())


def test_time_as_a_target() -> None:
    """The unit is that of the cost, a function of widths."""
    model = net()

    def ms(widths: Any) -> float:
        return 0.1 + 0.01 * widths.get("stem", 8) * widths.get("a", 12)

    sbf = SbF(model, batch(0)[0], 1.0, STEPS, target_ms=0.6, cost=ms)
    optimizer = optimizer_of(model, sbf)
    train(model, sbf, optimizer)
    sbf.finish_(optimizer)
    assert ms({"stem": model.stem.out_channels, "a": model.a.out_channels}) <= 0.6
    assert model.c.out_channels == 12  # it costs nothing


def test_the_time_of_the_engine_is_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured; here by one turn a program."""
    monkeypatch.setattr(layer_costs, "_SECONDS", 0.0)
    monkeypatch.setattr(layer_costs, "_ROUNDS", (1, 1))
    model, x = net(), batch(0)[0]
    cost = tops.budget.width_cost(model, x)
    names = [group.name for group in groups(model, x).free]
    whole, half = cost({}), cost(dict.fromkeys(names, 4.0))
    assert cost(dict.fromkeys(names, 4.5)) >= half > 0 and whole >= half
    target = half + 0.5 * (whole - half)
    sbf = SbF(model, x, 1.0, STEPS, target_ms=target, cost=cost)
    kept = sbf.finish_().kept
    assert cost({name: len(index) for name, index in kept.items()}) <= target


def test_bad_arguments_are_named() -> None:
    model, x = net(), batch(0)[0]
    with pytest.raises(BadConfig, match="steps >= 1"):
        SbF(model, x, 0.1, 0)
    with pytest.raises(BadConfig, match="target_params in 0..1"):
        SbF(model, x, 0.1, 5, target_params=1.5)
    with pytest.raises(BadConfig, match="target_ms with its cost"):
        SbF(model, x, 0.1, 5, target_ms=1.0)
    with pytest.raises(BadConfig, match="strength above 0"):
        SbF(model, x, 0.0, 5, target_params=0.5)
    with pytest.raises(BadConfig, match="score head"):
        SbF(model, x, 0.1, 5, head="norm")
    with pytest.raises(UnsupportedModel, match="filters that can be removed"):
        SbF(nn.Sequential(nn.Conv2d(2, 4, 3)), x, 0.1, 5)
    with pytest.raises(FormatError, match="a state of this SbF"):
        SbF(model, x, 0.1, 5).load_state_dict(SbF(net(), x, 0.2, 5).state_dict())
    sbf = SbF(net(), x, 0.1, 5, target_params=0.01)
    before = sbf.model(x)
    with pytest.raises(BadConfig, match="can be reached"):
        sbf.finish_()
    assert torch.equal(sbf.model(x), before)
    quantized = net()
    tops.quantize_(quantized, tops.plan(quantized, tops.TernaryConfig()))
    with pytest.raises(UnsupportedModel, match="float network"):
        SbF(quantized, x, 0.1, 5)

# SPDX-License-Identifier: Apache-2.0
"""Removal in the middle of training: optimizers, rates, averages and Pruners go on by value."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from filter_networks import family, some
from pruning import float_net, quantized_net
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.prune import FilterGroup, Pruner, groups, remove_

X = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
SMALL = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(3))
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor = X) -> Tensor:
    model.train()
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def rows(found: list[FilterGroup], kept: dict[str, Tensor], layer: str) -> Tensor:
    """The filters of a layer that stay."""
    (group,) = (g for g in found if layer in g.producers)
    return torch.from_numpy(group.rows(layer))[kept.get(group.name, torch.arange(group.width))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_goes_on_with_what_is_left_by_value(name: str) -> None:
    model = family("resnet")
    inner = [p for n, p in model.named_parameters() if "layer" in n]
    outer = [p for n, p in model.named_parameters() if "layer" not in n]
    optimizer = OPTIMIZERS[name]([{"params": inner}, {"params": outer, "lr": 0.02}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for _ in range(2):
        loss = step(model, optimizer)  # kept: its graph, with the old parameters, is alive
    schedule.step()
    found, weight = groups(model, X), "layer2.0.conv2.weight"
    before = dict(model.named_parameters())
    state = copy.deepcopy(optimizer.state[before[weight]])
    grad = before[weight].grad.clone()
    kept = remove_(model, X, some(model, X), optimizer, round_to=1).kept
    after = dict(model.named_parameters())
    out, into = (rows(found, kept, f"layer2.0.conv{n}") for n in (2, 1))
    here = optimizer.state[after[weight]]
    assert set(here) == set(state) and len(state) >= 1
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim:
            wanted = value if value.shape[0] == 1 else value[out]
            wanted = wanted if value.shape[1] == 1 else wanted[:, into]
            assert torch.equal(here[key], wanted) and wanted.abs().sum() > 0
        else:
            assert here[key] == value
    torch.testing.assert_close(after[weight], before[weight][out][:, into])
    assert torch.equal(after[weight].grad, grad[out][:, into])
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert [g["lr"] for g in optimizer.param_groups] == [0.005, 0.01]
    start = [p.clone() for p in model.parameters()]
    for _ in range(10):
        step(model, optimizer)
    schedule.step()
    assert all(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.0025 and loss.isfinite()


def test_an_optimizer_that_was_left_behind_says_so() -> None:
    """Torch-Pruning#63 and fasterai#92: it would train tensors that no network has any more."""
    model, other = family("mobilenet"), family("resnet")
    optimizer, free = (torch.optim.SGD(m.parameters(), 0.1) for m in (model, other))
    remove_(model, X, some(model, X))
    step(other, free)
    with pytest.raises(UnsupportedModel, match="remove_ has replaced"):
        step(model, optimizer)
    step(model, torch.optim.SGD(model.parameters(), 0.1))
    del optimizer
    step(other, free)


def test_state_that_cannot_be_cut_is_refused() -> None:
    model = family("resnet").float()
    x = X.float()
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModel, match="state of the optimizer"):
        remove_(model, x, {"layer3.0.conv1": range(16)}, optimizer)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_averages_are_narrowed_alike() -> None:
    model = family("resnet")
    average = torch.optim.swa_utils.AveragedModel(model)
    made = remove_(model, X, some(model, X))
    remove_(average, X, made.kept)
    average.update_parameters(model)
    step(model, torch.optim.SGD(model.parameters(), 0.1))


def pruned(criterion: str = "magnitude", **options: Any) -> tuple[Any, Any, Pruner]:
    model = float_net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    pruner = Pruner(
        model, "constant", 20, zeros=0.5, optimizer=optimizer, criterion=criterion, **options
    )
    for _ in range(4):
        step(model, optimizer, SMALL)
        pruner.step()
    return model, optimizer, pruner


def settled(cut: dict[str, Tensor], layers: Any) -> None:
    """Masks have lost the same channels; of the others as many units changed as zeros must be
    more, or fewer, for the share of the smaller weights.
    """
    more = [layers[name].mask.int() - mask.int() for name, mask in cut.items()]
    assert len({int(sign) for change in more for sign in change.unique()} - {0}) <= 1
    assert sum(int((change != 0).sum()) for change in more) < 0.2 * sum(m.numel() for m in more)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda", "random"])
def test_a_pruner_goes_on(criterion: str) -> None:
    model, optimizer, pruner = pruned(criterion)
    masks = {t.name: t.mask.clone() for t in pruner._targets}
    memory = {name: value.clone() for name, value in pruner.criterion.memory.items()}
    made = remove_(model, SMALL, {"3": [0, 1, 3, 5, 6, 7]}, optimizer, pruner, round_to=1)
    rows = made.kept["3"]
    linear = (rows[:, None] * 16 + torch.arange(16)).flatten()
    targets = {t.name: t for t in pruner._targets}
    settled({"3": masks["3"][rows], "6": masks["6"][:, linear]}, targets)
    if criterion in ("taylor", "wanda"):
        after = pruner.criterion.memory["6"]
        wanted = memory["6"][:, linear] if criterion == "taylor" else memory["6"][linear]
        assert torch.equal(after, wanted) and wanted.abs().sum() > 0
    for _ in range(16):
        step(model, optimizer, SMALL)
        pruner.step()
    units = sum(t.units for t in targets.values())
    assert units == sum(p.numel() for n, p in model.named_parameters() if n in _WEIGHTS)
    assert pruner.zeros == pytest.approx(0.5, abs=1 / units)
    if criterion == "magnitude":
        again = Pruner(copy.deepcopy(model), "constant", 20, zeros=0.5)
        again.load_state_dict(pruner.state_dict())
        assert again.zeros == pruner.zeros


_WEIGHTS = ("0.weight", "3.weight", "6.weight")


def test_latent_values_and_growth_go_on() -> None:
    model, optimizer, pruner = pruned(nested=False)
    latent = pruner._targets[1].latent
    assert latent is not None
    made = remove_(model, SMALL, {"3": [0, 1, 3, 5, 6, 7]}, optimizer, pruner, round_to=1)
    assert torch.equal(pruner._targets[1].latent, latent[made.kept["3"]])  # type: ignore[arg-type]
    model, optimizer, pruner = pruned(growth="rigl", scope="layer")
    remove_(model, SMALL, {"3": [0, 1, 3, 5, 6, 7]}, optimizer, pruner, round_to=1)
    for _ in range(16):
        step(model, optimizer, SMALL)
        pruner.step()
    assert pruner.zeros == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("steps", [0, 3, 7, 10])
def test_quantized_layers_lose_filters_in_every_phase(steps: int) -> None:
    model = quantized_net(zeros=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = Pruner(model, total_steps=10, optimizer=optimizer)
    for _ in range(steps):
        step(model, optimizer, SMALL)
        pruner.step()
    codes, mask, phase = model[2].codes.clone(), model[2].mask.clone(), model[2].phase
    kept = {"2": [0, 1, 4, 9], "0": [0, 1, 2, 5]}
    remove_(model, SMALL, kept, optimizer, pruner)
    assert model[2].weight.shape == (4, 4, 3, 3) and model[2].phase == phase
    assert (model[2].out_channels, model[2].in_channels, model[4].in_channels) == (4, 4, 4)
    if phase == "frozen" or steps == 0:
        assert torch.equal(model[2].mask, mask[kept["2"]][:, kept["0"]])
    assert torch.equal(model[2].codes, codes[kept["2"]][:, kept["0"]])
    for _ in range(10 - steps):
        step(model, optimizer, SMALL)
        pruner.step()
    assert pruner.phase == "frozen"
    if steps < 10:  # what is frozen is not pruned anew
        assert pruner.zeros == pytest.approx(0.5, abs=1 / 45)  # units of the two layers
    program = tops.compile(model.eval(), SMALL)
    wanted = model(SMALL).detach()
    found = torch.from_numpy(program(SMALL.numpy()))
    assert (found - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_too_few_units_for_the_zeros_leave_everything_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner = Pruner(model, "constant", 20, zeros=0.9, pattern="filter", min_nnz=0)
    x = torch.randn(2, 1, 6, 6)
    for _ in range(3):
        step(model, optimizer, x)
        pruner.step()
    before = {n: p for n, p in model.named_parameters()}
    state, known = copy.deepcopy(pruner.state_dict()), dict(optimizer.state)
    with pytest.raises(BadConfig, match="zeros"):
        remove_(model, x, {"0": [3]}, optimizer, pruner, round_to=1)
    assert all(before[n] is p for n, p in model.named_parameters())
    assert model[0].out_channels == 8 and known.keys() == optimizer.state.keys()
    again = pruner.state_dict()
    assert again["plan"] == state["plan"]
    assert all(torch.equal(a, b) for a, b in zip(again["pruned"], state["pruned"], strict=True))
    step(model, optimizer, x)
    pruner.step()

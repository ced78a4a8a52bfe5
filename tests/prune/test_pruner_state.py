# SPDX-License-Identifier: Apache-2.0
"""States of the Pruner, runs that go on, and skipped steps."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from pruning import (
    adam,
    float_net,
    quantized_net,
    sgd,
    ternary_layers,
    train,
)
from torch import nn

from ternary_ops.errors import FormatError
from ternary_ops.prune import Pruner, one_cycle


def test_resuming_takes_no_new_codes() -> None:
    model = quantized_net()
    pruner = Pruner(model, total_steps=10)
    for _ in range(9):
        pruner.step()
    codes = model[2].codes.clone()
    with torch.no_grad():
        model[2].weight.neg_()  # latent weights go on learning and may change sign
    resumed = quantized_net()
    resumed.load_state_dict(model.state_dict())
    Pruner(resumed, total_steps=10).load_state_dict(pruner.state_dict())
    assert resumed[2].phase == "frozen"
    assert torch.equal(resumed[2].codes, codes)
    assert codes.any()


def test_a_skipped_step_applies_the_masks_and_advances_nothing() -> None:
    model = quantized_net()
    optimizer = sgd(model)
    pruner = Pruner(model, total_steps=10, optimizer=optimizer)
    train(model, optimizer, pruner, range(5))
    zeros, progress = pruner.zeros, pruner.progress
    masks = [layer.mask.clone() for layer in ternary_layers(model)]
    with torch.no_grad():
        for layer in ternary_layers(model):
            layer.weight.fill_(1.0)
    for _ in range(7):
        pruner.step(skipped=True)
    assert (pruner.zeros, pruner.progress) == (zeros, progress)
    assert all(
        torch.equal(layer.weight, mask.float())
        for layer, mask in zip(ternary_layers(model), masks, strict=True)
    )


def test_with_a_grad_scaler_that_skips() -> None:
    model = quantized_net()
    optimizer = adam(model)
    pruner = Pruner(model, total_steps=4, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(6):
        loss = model(torch.randn(2, 1, 4, 4)).square().mean() * (torch.inf if step in (1, 3) else 1)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        pruner.step(skipped=scaler.get_scale() < before)
    assert pruner.progress == 1.0
    assert pruner.zeros == pytest.approx(0.8, abs=0.003)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("make_model", [quantized_net, float_net])
@pytest.mark.parametrize("stop", [3, 8, 14, 19])
@pytest.mark.parametrize("order", ["model first", "pruner first"])
def test_resuming_continues_bit_for_bit(
    nested: bool, make_model: Any, stop: int, order: str
) -> None:
    options: dict[str, Any] = {"total_steps": 20, "nested": nested}
    if make_model is float_net:
        options |= {"zeros": 0.8, "pattern": "1x4"}
    torch.manual_seed(7)
    model = make_model()
    optimizer = adam(model)
    pruner = Pruner(model, optimizer=optimizer, **options)
    train(model, optimizer, pruner, range(stop))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    train(model, optimizer, pruner, range(stop, 22))

    resumed = make_model()
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    if order == "model first":
        resumed.load_state_dict(states[0])
    optimizer2 = adam(resumed)
    pruner2 = Pruner(resumed, optimizer=optimizer2, **options)
    optimizer2.load_state_dict(states[1])
    pruner2.load_state_dict(states[2])
    if order == "pruner first":
        resumed.load_state_dict(states[0])
    assert pruner2.progress == stop / 20
    train(resumed, optimizer2, pruner2, range(stop, 22))
    for (name, a), b in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a.nan_to_num(77.0), b.nan_to_num(77.0)), name
    assert pruner.summary() == pruner2.summary()


def test_the_state_is_small() -> None:
    model = nn.Linear(64, 64)
    pruner = Pruner(model, total_steps=2, zeros=0.9)
    pruner.step()
    state = pruner.state_dict()
    assert [t.numel() for t in state["pruned"]] == [64 * 64 // 8]
    assert state["latent"] == {}


def test_a_fresh_run_on_a_frozen_model_starts_over() -> None:
    model = quantized_net(zeros=0.5)
    Pruner(model, total_steps=1).step()
    assert model[2].phase == "frozen"
    pruner = Pruner(model, total_steps=10, zeros=0.8)
    pruner.step()
    assert model[2].phase == "float"
    for _ in range(9):
        pruner.step()
    assert pruner.zeros == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    "change", [{"total_steps": 11}, {"zeros": 0.7}, {"schedule": one_cycle(14, 5)}]
)
def test_a_state_of_other_arguments_is_refused(change: dict[str, Any]) -> None:
    options: dict[str, Any] = {"total_steps": 10, "zeros": 0.8}
    pruner = Pruner(float_net(), **options)
    pruner.step()
    other = Pruner(float_net(), **{**options, **change})
    with pytest.raises(FormatError, match="there, .* here"):
        other.load_state_dict(pruner.state_dict())
    assert other.progress == 0.0


def test_a_state_of_another_model_or_damaged_is_refused() -> None:
    pruner = Pruner(float_net(), total_steps=10, zeros=0.8)
    with pytest.raises(FormatError, match="layers"):
        Pruner(nn.Linear(9, 9), total_steps=10, zeros=0.8).load_state_dict(pruner.state_dict())
    for damage in ({}, {"step": 3}, {**pruner.state_dict(), "plan": 3}):
        with pytest.raises(FormatError):
            pruner.load_state_dict(damage)
    cut = pruner.state_dict()
    cut["pruned"] = [t[:-1] for t in cut["pruned"]]
    with pytest.raises(FormatError, match="size"):
        pruner.load_state_dict(cut)

# SPDX-License-Identifier: Apache-2.0
"""The Pruner: phases, masks that stay or come back, and latent values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pruning import (
    OPTIMIZERS,
    empty,
    float_net,
    quantized_net,
    sgd,
    ternary_layers,
    train,
    train_step,
)
from torch import nn

from ternary_ops.errors import BadConfig
from ternary_ops.prune import Pruner


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_dense_sparse_dense_gives_weights_back_by_degrees(make: Any) -> None:
    with pytest.raises(BadConfig, match="nested=False"):
        Pruner(float_net(), "dsd", 40, zeros=0.8)
    model = float_net()
    optimizer = make(model)
    pruner = Pruner(
        model, "dsd", 40, zeros=0.8, optimizer=optimizer, nested=False, freeze_at=1.0, every=1
    )
    shares = []
    for step in range(40):
        train(model, optimizer, pruner, range(step, step + 1))
        shares.append(pruner.zeros)
    assert max(shares) == pytest.approx(0.8, abs=0.01) and shares.index(max(shares)) in (18, 19, 20)
    assert shares[-1] == 0.0
    falling = shares[20:39]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 15


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make_model", [quantized_net, float_net])
def test_pruned_weights_and_their_state_stay_zero(make_optimizer: Any, make_model: Any) -> None:
    model = make_model()
    layers = ternary_layers(model) or [model[3], model[6]]
    options = {} if ternary_layers(model) else {"zeros": 0.8, "pattern": "element"}
    optimizer = make_optimizer(model)
    pruner = Pruner(model, total_steps=12, optimizer=optimizer, **options)
    gone = [torch.zeros_like(layer.weight, dtype=torch.bool) for layer in layers]
    for step in range(15):  # three steps more than planned
        train_step(model, optimizer, step)
        pruner.step(skipped=False)
        for layer, before in zip(layers, gone, strict=True):
            now = layer.weight == 0
            assert bool(now[before].all()), "a pruned weight came back"
            before |= now
            for value in optimizer.state[layer.weight].values():
                if value.shape == now.shape:
                    assert not value[now].any()
                    assert value[~now].any()
    assert torch.cat([g.flatten() for g in gone]).float().mean() > 0.7  # padded quads are narrower
    assert pruner.progress == 1.0


def test_masks_never_grow_back_and_phases_follow_the_plan() -> None:
    model = quantized_net()
    optimizer = sgd(model)
    pruner = Pruner(model, "one_cycle", 20, optimizer=optimizer)
    phases, masks = [], [layer.mask.clone() for layer in ternary_layers(model)]
    for step in range(20):
        phases.append(pruner.phase)
        assert all(model[i].phase == pruner.phase for i in (0, 2, 4))
        train(model, optimizer, pruner, range(step, step + 1))
        for layer, before in zip(ternary_layers(model), masks, strict=True):
            assert not bool((layer.mask & ~before).any())
            before.copy_(layer.mask)
    assert phases == ["float"] * 8 + ["ternary"] * 10 + ["frozen"] * 2


def test_after_the_freeze_masks_and_codes_stay() -> None:
    model = quantized_net()
    optimizer = sgd(model)
    pruner = Pruner(model, "one_cycle", 20, optimizer=optimizer, nested=False)
    train(model, optimizer, pruner, range(18))
    assert pruner.phase == "frozen"
    before = [(layer.mask.clone(), layer.codes.clone()) for layer in ternary_layers(model)]
    int8 = model[0].codes.clone()
    weights = [layer.weight.detach().clone() for layer in ternary_layers(model)]
    train(model, optimizer, pruner, range(18, 26))
    for layer, (mask, codes), weight in zip(ternary_layers(model), before, weights, strict=True):
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.codes, codes)
        assert not torch.equal(layer.weight, weight), "the test trained nothing"
        assert not layer.weight[~mask].any()
    assert torch.equal(model[0].codes, int8)


def test_after_the_freeze_nothing_is_ranked_anew() -> None:
    layer = nn.Linear(10, 10)
    pruner = Pruner(layer, total_steps=10, zeros=0.5, freeze_at=0.5, nested=False)
    for _ in range(5):
        pruner.step()
    alive = layer.weight != 0
    with torch.no_grad():
        layer.weight.copy_(torch.where(alive, 1e-9, 1.0))
    for _ in range(5):
        pruner.step()
    assert torch.equal(layer.weight != 0, alive)


def test_ternary_from_the_first_step_on() -> None:
    model = quantized_net()
    Pruner(model, total_steps=10, ternary_at=0.0)
    assert {layer.phase for layer in ternary_layers(model)} == {"ternary"}


def test_regrowth_brings_weights_back_and_still_ends_exactly() -> None:
    model = quantized_net(pattern="element")
    optimizer = sgd(model)
    pruner = Pruner(model, "one_cycle", 40, optimizer=optimizer, nested=False, ternary_at=0.9)
    back = 0
    masks = [layer.mask.clone() for layer in ternary_layers(model)]
    for step in range(40):
        train(model, optimizer, pruner, range(step, step + 1))
        for layer, before in zip(ternary_layers(model), masks, strict=True):
            back += int((layer.mask & ~before).sum())
            before.copy_(layer.mask)
            assert not layer.weight[~layer.mask].any()
    assert back > 0
    counts = [empty(layer.weight, "element") for layer in ternary_layers(model)]
    assert sum(c for c, _ in counts) == round(0.8 * sum(n for _, n in counts))


def test_latent_values_collect_the_changes_of_pruned_weights() -> None:
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    pruner = Pruner(layer, "one_shot", 100, zeros=0.5, nested=False, start=0.0)
    pruner.step()
    assert layer.weight.tolist() == [[0.0, 0.0, 3.0, -4.0]]
    for change, expected in [
        (
            [1.5, 0.0, -0.5, 0.0],
            [[0.0, 0.0, 2.5, -4.0]],
        ),  # latent 2.5 ties with 2.5: the first goes
        ([0.25, 0.0, 0.0, 0.0], [[2.75, 0.0, 0.0, -4.0]]),  # 2.75 beats 2.5
        ([0.0, 0.0, -5.5, 0.0], [[0.0, 0.0, -3.0, -4.0]]),  # 2.5 - 5.5 beats 2.75
    ]:
        with torch.no_grad():
            layer.weight += torch.tensor([change])
        pruner.step()
        assert layer.weight.tolist() == expected


def test_planning_changes_no_weight() -> None:
    model = quantized_net()
    before = copy.deepcopy(list(model.parameters()))
    Pruner(model, total_steps=10, optimizer=sgd(model))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_equal_weights_give_equal_masks() -> None:
    torch.manual_seed(3)
    model = quantized_net()
    copies = [model, copy.deepcopy(model)]
    for copied in copies:
        Pruner(copied, total_steps=1).step()
    for a, b in zip(*(ternary_layers(m) for m in copies), strict=True):
        assert torch.equal(a.mask, b.mask)

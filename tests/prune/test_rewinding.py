# SPDX-License-Identifier: Apache-2.0
"""Weights that go back to an early step, and schedules whose zeros come, go and come again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pruning import adam, float_net, quantized_net, sgd, train, train_step
from torch import Tensor, nn

from ternary_ops.errors import BadConfig
from ternary_ops.prune import Pruner, iht, iterative

STEPS, K = 30, 4


def values(model: nn.Module) -> dict[str, Tensor]:
    found = {name: value.detach().clone() for name, value in model.named_parameters()}
    return found | {
        name: value.clone() for name, value in model.named_buffers() if "running" in name
    }


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("k", [0, K])
def test_lottery_tickets_go_back_to_step_k(quantized: bool, k: int) -> None:
    model = quantized_net(pattern="element") if quantized else float_net()
    optimizer = adam(model)
    known = values(model)
    pruner = Pruner(
        *(model, iterative(3), STEPS, 0.8), optimizer=optimizer, rewind=k, every=1, ternary_at=0.6
    )
    rounds = []
    for step in range(1, STEPS + 1):
        count = sum(group.count for group in pruner._groups)
        train_step(model, optimizer, step)
        trained = values(model)
        pruner.step()
        if step == k:
            known = values(model)
        if sum(group.count for group in pruner._groups) == count:
            assert pruner.round_step == step - (rounds[-1] - k if rounds else 0)
            continue
        rounds.append(step)
        assert pruner.round_step == k and not optimizer.state
        masks = {f"{t.name}.weight": t.mask for t in pruner._targets}
        for name, value in values(model).items():
            mask = masks.get(name, torch.ones_like(value) > 0)
            assert torch.equal(value, known[name] * mask), name
        for target in pruner._targets:  # chosen by the trained weights
            size = trained[f"{target.name}.weight"].abs()
            assert float(size[~target.mask].median()) < float(size[target.mask].median())
    assert len(rounds) == 3 and rounds[-1] < pruner.phases.end
    assert sum(g.count for g in pruner._groups) == sum(round(0.8 * g.total) for g in pruner._groups)


@pytest.mark.parametrize("stop", [2, 10, 19])
def test_a_resumed_run_goes_back_to_the_same_values(stop: int) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        torch.manual_seed(2)
        model = float_net()
        optimizer = sgd(model)
        return model, optimizer, Pruner(model, iterative(3), 24, 0.8, optimizer=optimizer, rewind=3)

    whole, first, second = fresh(), fresh(), fresh()
    train(*whole, range(24))
    train(*first, range(stop))
    for part, saved in zip(second, copy.deepcopy([p.state_dict() for p in first]), strict=True):
        part.load_state_dict(saved)
    train(*second, range(stop, 24))
    assert second[2].round_step == whole[2].round_step
    for key, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[key], value), key


@pytest.mark.parametrize("make", [sgd, adam])
def test_hard_thresholding_is_sparse_k_steps_and_dense_d_steps(make: Any) -> None:
    torch.manual_seed(0)
    model = float_net()
    optimizer = make(model)
    schedule = iht(sparse=4, dense=3, steps=18)
    pruner = Pruner(
        *(model, schedule, 20, 0.75), optimizer=optimizer, start=0.1, freeze_at=1.0, every=50
    )
    due, masks = [], []
    for step in range(20):
        layer = model[6]
        gone = layer.weight == 0
        train(model, optimizer, pruner, range(step, step + 1))
        due.append(sum(group.count for group in pruner._groups) / 1800)
        if due[-1]:
            masks.append(layer.weight == 0)
        elif due[-2:-1] == [0.75]:  # all have come back, as zeros without momentum
            assert torch.equal(layer.weight == 0, gone)
            kept = [v for v in optimizer.state[layer.weight].values() if v.shape == gone.shape]
            assert kept and not any(value[gone].any() for value in kept)
    # The mask of a step holds for the next one: steps 3 to 6 train with the first.
    counts = [share > 0.5 for share in due]
    assert counts == [False] + ([True] * 4 + [False] * 3) * 2 + [True] * 5
    assert due[-1] == 0.75 and pruner.zeros == pytest.approx(0.75, abs=1e-3)
    assert not torch.equal(masks[0], masks[-1])


@pytest.mark.parametrize("counts", [(0, 1, 9), (1, 0, 9), (1, 1, 2), (1.5, 1, 9), (True, 1, 9)])
def test_bad_counts_of_hard_thresholding_are_refused(counts: Any) -> None:
    with pytest.raises(BadConfig, match="iht"):
        iht(*counts)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schedule": "one_cycle", "rewind": 0}, "iterative"),
        ({"schedule": "iht", "rewind": 0}, "iterative"),
        ({"rewind": 15}, "before the first zeros"),
        ({"rewind": -1}, "rewind"),
        ({"rewind": 1.5}, "rewind"),
        ({"rewind": 1, "nested": False}, "nested=True"),
        ({"rewind": 1, "optimizer": None}, "optimizer"),
    ],
)
def test_what_cannot_go_back_is_refused(options: dict[str, Any], match: str) -> None:
    model = float_net()
    given = {"schedule": iterative(3), "optimizer": sgd(model), **options}
    with pytest.raises(BadConfig, match=match):
        Pruner(model, total_steps=20, zeros=0.5, **given)

# SPDX-License-Identifier: Apache-2.0
"""Dynamic sparse training: SET, RigL as one overridden method of it, and rules of one's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pruning import (
    adam,
    backward,
    float_net,
    quantized_net,
    sgd,
    ternary_layers,
    train,
    train_step,
)
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, FormatError
from ternary_ops.nn.patterns import get_pattern, unit_scores
from ternary_ops.prune import GROWTHS, SET, Growth, Pruner, RigL, register_growth
from ternary_ops.prune.growth import Candidates

STEPS, EVERY = 24, 3
EXCHANGING = ["set", "rigl", "snfs", "shuffled"]  # rules that drop the smallest


class LargestGradient(SET):
    """RigL, from SET, by one method."""

    def scores(self, candidates: Candidates) -> Tensor:
        return unit_scores(candidates.gradient, candidates.pattern)


def dst(model: nn.Module, optimizer: torch.optim.Optimizer, growth: Any, **options: Any) -> Pruner:
    given = {"every": EVERY, "scope": "layer", "optimizer": optimizer, **options}
    return Pruner(model, "constant", STEPS, growth=growth, **given)


@pytest.mark.parametrize("growth", EXCHANGING)
@pytest.mark.parametrize("pattern", ["element", "1x4"])
@pytest.mark.parametrize("scope", ["layer", "erk", "global"])
def test_the_count_is_exact_at_every_step(growth: str, pattern: str, scope: str) -> None:
    model = float_net()
    optimizer = adam(model)
    pruner = dst(model, optimizer, growth, zeros=0.7, pattern=pattern, scope=scope)
    layers = [model[0], model[3], model[6]]
    gone, moved, counts = torch.zeros(0), 0, []
    for step in range(STEPS):
        train_step(model, optimizer, step)
        pruner.step()
        bits = [np.unpackbits(packed.numpy()) for packed in pruner.state_dict()["pruned"]]
        counts.append([int(group.sum()) for group in bits])
        now = torch.from_numpy(np.concatenate(bits)).bool()
        moved += int((gone & ~now).sum()) if step else 0
        gone = now
        for layer in layers:
            assert not optimizer.state[layer.weight]["exp_avg"][layer.weight == 0].any()
    assert all(count == counts[0] for count in counts) and moved > 20
    rows = pruner.summary()
    if scope != "global":  # fresh units are zero until the next step; at the end none are fresh
        assert [row.measured for row in rows] == pytest.approx(
            [row.target for row in rows], abs=0.01
        )
    assert pruner.zeros == pytest.approx(0.7, abs=0.01)


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 8))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 20, generator=generator)
    return x, torch.randint(0, 8, (16,), generator=generator)


@pytest.mark.parametrize("rule", [RigL, LargestGradient])
def test_rigl_drops_the_smallest_and_grows_the_largest_gradients(rule: type[Growth]) -> None:
    """Against brute force, layer by layer; what grows is zero, with zero momentum."""
    model = plain()
    optimizer = sgd(model)
    growth = rule(fraction=0.4)
    pruner = dst(model, optimizer, growth, zeros=0.6)
    layers = [model[0], model[2]]
    kept, grown = [torch.zeros(0)] * 2, 0
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradients = [layer.weight.grad.abs().flatten() for layer in layers]
        optimizer.step()
        moved = [layer.weight.detach().abs().flatten() for layer in layers]
        pruner.step()
        now = [(layer.weight.detach() != 0).flatten() for layer in layers]
        if step == 1 or step % EVERY or step / STEPS >= 0.75:
            assert step == 1 or all(map(torch.equal, now, kept))
            kept = now
            continue
        for at, layer in enumerate(layers):
            n = int(0.2 * (1 + math.cos(math.pi * step / STEPS / 0.75)) * int(kept[at].sum()))
            left = kept[at].clone()
            left[torch.where(left, moved[at], torch.inf).argsort()[:n]] = False
            size = torch.where(left, -1.0, gradients[at])
            wanted = left.clone()
            wanted[size.argsort(descending=True)[:n]] = True
            fresh = wanted & ~kept[at]
            assert torch.equal(now[at], wanted & ~fresh)  # fresh ones are still zero
            assert not optimizer.state[layer.weight]["momentum_buffer"].flatten()[fresh].any()
            kept[at], grown = wanted, grown + int(fresh.sum())
    assert grown > 20


def test_set_grows_at_random_and_rules_differ() -> None:
    masks = {}
    for name in ("set", "rigl", "again"):
        model = plain()
        optimizer = sgd(model)
        pruner = dst(model, optimizer, "set" if name == "again" else name, zeros=0.6)
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            pruner.step()
        masks[name] = model[0].weight != 0
    assert torch.equal(masks["set"], masks["again"])
    assert not torch.equal(masks["set"], masks["rigl"])


def test_another_seed_is_another_first_mask() -> None:
    masks = []
    for seed in (0, 1, 1):
        model = plain()
        pruner = dst(model, sgd(model), SET(seed=seed), zeros=0.6)
        pruner.step()
        masks.append(model[0].weight != 0)
    assert torch.equal(masks[1], masks[2]) and not torch.equal(masks[0], masks[1])
    with pytest.raises(BadConfig, match="seed"):
        SET(seed=0.5)  # type: ignore[arg-type]


def test_the_fraction_falls_along_half_a_cosine() -> None:
    growth = SET(fraction=0.3, until=0.8)
    assert growth.fraction_at(0.0) == pytest.approx(0.3)
    assert growth.fraction_at(0.4) == pytest.approx(0.15)
    assert growth.fraction_at(0.8) == growth.fraction_at(1.0) == 0.0


@pytest.mark.parametrize(
    ("growth", "stop"), [*((name, 6) for name in GROWTHS), ("set", 5), ("rigl", 5), ("rigl", 13)]
)
@pytest.mark.parametrize("quantized", [True, False])
def test_a_resumed_run_has_the_same_bits(growth: str, quantized: bool, stop: int) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        torch.manual_seed(2)
        model = quantized_net() if quantized else float_net()
        optimizer = adam(model)
        return model, optimizer, dst(model, optimizer, growth, zeros=0.8)

    whole = fresh()
    train(*whole, range(STEPS))
    first = fresh()
    train(*first, range(stop))
    states = [copy.deepcopy(part.state_dict()) for part in first]
    second = fresh()
    for part, state in zip(second, states, strict=True):
        part.load_state_dict(state)
    train(*second, range(stop, STEPS))
    for key, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[key].nan_to_num(7), value.nan_to_num(7)), key
    other = dst(second[0], second[1], type(GROWTHS[growth]())(fraction=0.2), zeros=0.8)
    with pytest.raises(FormatError, match="growth"):
        other.load_state_dict(states[2])


def test_quantized_layers_see_the_gradient_of_pruned_weights_on_update_steps() -> None:
    torch.manual_seed(2)
    model = quantized_net(pattern="element")
    optimizer = sgd(model)
    pruner = dst(model, optimizer, "rigl", ternary_at=0.5)
    back = 0
    for step in range(1, STEPS + 1):
        layers = ternary_layers(model)
        holes = [~layer.mask.clone() for layer in layers]
        phase = pruner.phase
        twin = copy.deepcopy(model)
        backward(model, optimizer, step)
        reached = any(bool(la.weight.grad[h].any()) for la, h in zip(layers, holes, strict=True))
        if phase == "float" and step > 1:
            assert reached == (step % EVERY == 0)
            with torch.no_grad():  # the added zeros change no bit of the output
                x = torch.randn(2, 1, 4, 4)
                wanted = twin(x)
                for layer in ternary_layers(twin):
                    layer.dense_gradient = not layer.dense_gradient
                assert torch.equal(twin(x), wanted)
        optimizer.step()
        pruner.step()
        back += sum(int((la.mask & h).sum()) for la, h in zip(layers, holes, strict=True))
    assert back > 20 and pruner.phase == "frozen"
    zeros = sum(int((unit_scores(la.weight, get_pattern("element")) == 0).sum()) for la in layers)
    assert zeros == sum(round(0.8 * la.weight.numel()) for la in layers)


def test_a_gradual_schedule_may_grow_too() -> None:
    model = float_net()
    optimizer = sgd(model)
    pruner = Pruner(model, "agp", 40, 0.8, growth=RigL(random_start=False), optimizer=optimizer)
    shares = []
    for step in range(40):
        train(model, optimizer, pruner, range(step, step + 1))
        shares.append(pruner.zeros)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.8, abs=0.001)


def test_rules_of_ones_own_are_registered_once() -> None:
    class Wrong(Growth):
        def scores(self, candidates: Candidates) -> Tensor:
            return torch.zeros(3)

    register_growth("wrong_shape", Wrong)
    try:
        with pytest.raises(BadConfig, match="free name"):
            register_growth("wrong_shape", Wrong)
        model = plain()
        optimizer = sgd(model)
        pruner = dst(model, optimizer, "wrong_shape", zeros=0.6)
        with pytest.raises(BadConfig, match="one score per unit"):
            for step in range(4):
                model(batch(step)[0]).sum().backward()
                optimizer.step()
                pruner.step()
    finally:
        del GROWTHS["wrong_shape"]
    with pytest.raises(BadConfig, match="subclass"):
        register_growth("text", "set")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"growth": "grow"}, "set, rigl"),
        ({"growth": "rigl", "optimizer": None}, "optimizer"),
        ({"growth": "rigl", "nested": False}, "nested"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], match: str) -> None:
    model = plain()
    with pytest.raises(BadConfig, match=match):
        Pruner(model, "constant", 10, 0.5, **{"optimizer": sgd(model), **options})
    for wrong in ({"fraction": 0.0}, {"fraction": 1.0}, {"until": 0.0}, {"until": 1.5}):
        with pytest.raises(BadConfig, match="fraction"):
            RigL(**wrong)

# SPDX-License-Identifier: Apache-2.0
"""Rules of growth against brute force, and what an exchange leaves as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from pruning import adam, backward, float_net, quantized_net, sgd, ternary_layers, train_step
from torch import Tensor, nn

from ternary_ops.errors import BadConfig
from ternary_ops.nn.patterns import unit_sums
from ternary_ops.prune import DNW, GROWTHS, SNFS, DeepR, Growth, Pruner, RigL
from ternary_ops.prune.growth_run import GrowthRun

STEPS, EVERY = 20, 3


def occupied(target: Any) -> int:
    """Units that the mask leaves something of."""
    return int((unit_sums(target.mask.float(), target.pattern) > 0).sum())


def units_kept(pruner: Pruner) -> list[int]:
    """Occupied units by the masks, of each group."""
    return [group.total - group.count for group in pruner._groups]


def masks(pruner: Pruner) -> list[Tensor]:
    return [target.mask.clone() for target in pruner._targets]


@pytest.mark.parametrize("growth", list(GROWTHS))
@pytest.mark.parametrize("pattern", ["element", "1x4"])
def test_occupied_units_are_constant_in_all_phases(growth: str, pattern: str) -> None:
    torch.manual_seed(1)
    model = quantized_net(pattern=pattern, scope="layer")
    optimizer = sgd(model)
    rule = DeepR(l1=1.0) if growth == "deepr" else growth  # so that weights cross zero soon
    pruner = Pruner(model, None, STEPS, optimizer=optimizer, growth=rule, every=EVERY)
    phases, seen, counts, moved = set(), [], [], 0
    for step in range(STEPS):
        phases.add(pruner.phase)
        train_step(model, optimizer, step)
        pruner.step()
        counts.append([occupied(target) for target in pruner._targets])
        assert counts[-1] == units_kept(pruner)
        for layer in ternary_layers(model):
            assert not layer.weight[~layer.mask].any()
        moved += sum(int((a & ~b).sum()) for a, b in zip(masks(pruner), seen, strict=False))
        seen = masks(pruner)
    wanted = [t.units - round(0.8 * t.units) for t in pruner._targets]
    assert counts == [wanted] * STEPS and phases == {"float", "ternary", "frozen"}
    assert (moved == 0) == (growth == "static")


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("pattern", ["element", "1x4"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_rigl_is_brute_force_bit_for_bit(make: Any, pattern: str, every: int) -> None:
    """Masks, weights and optimizer state after every step, in NumPy on flat arrays."""
    torch.manual_seed(4)
    model = float_net()
    twin = copy.deepcopy(model)
    optimizer, other = make(model), make(twin)
    growth = RigL(fraction=0.4, until=0.9)
    options = {"pattern": pattern, "scope": "layer", "optimizer": optimizer}
    pruner = Pruner(model, None, STEPS, 0.6, growth=growth, every=every, freeze_at=1.0, **options)
    exchanges = 0
    for step in range(1, STEPS + 1):
        before = masks(pruner)
        train_step(model, optimizer, step)
        pruner.step()
        backward(twin, other, step)
        due = step > 1 and step % every == 0 and step / STEPS < 0.9
        if not due:
            other.step()
        exchanges += due
        for target, old in zip(pruner._targets, before, strict=True):
            weight = twin.get_submodule(target.name).weight
            if step == 1:
                kept = target.mask.numpy()
            elif due:
                kept = brute_force(target, weight, old, step / STEPS, growth)
            else:
                kept = old.numpy()
            assert np.array_equal(target.mask.numpy(), kept)
            with torch.no_grad():
                weight *= torch.from_numpy(kept)
                for value in other.state[weight].values():
                    if value.shape == weight.shape:
                        value *= torch.from_numpy(kept & (old.numpy() | (step == 1)))
            state, wanted = optimizer.state[target.weight], other.state[weight]
            assert torch.equal(target.weight, weight)
            assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert exchanges >= 3


def brute_force(target: Any, weight: Tensor, old: Tensor, t: float, growth: Growth) -> Any:
    """The mask after one exchange."""
    units = target.units

    def score(values: Tensor) -> Any:
        return unit_sums(values.detach().abs(), target.pattern).numpy()

    kept = score(old.float()) > 0
    n = int(growth.fraction / 2 * (1 + math.cos(math.pi * t / growth.until)) * int(kept.sum()))
    sizes, slopes = score(weight), score(weight.grad)
    alive = sorted((i for i in range(units) if kept[i]), key=lambda i: (sizes[i], i))
    kept[alive[: min(n, len(alive) - 1)]] = False
    pruned = sorted((i for i in range(units) if not kept[i]), key=lambda i: (-slopes[i], i))
    kept[pruned[:n]] = True
    rows, cols, taps = target.pattern.grid(weight.shape)
    shape = weight.shape
    whole = np.repeat(kept.reshape(rows, cols, taps), max(1, target.pattern.cols), axis=1)
    return whole[:, : shape[1]].reshape(shape)


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("quantized", [True, False])
def test_an_exchange_leaves_everything_else_bit_for_bit(make: Any, quantized: bool) -> None:
    torch.manual_seed(5)
    model = quantized_net(pattern="element") if quantized else float_net()
    model.append(nn.BatchNorm1d(5 if quantized else 11))
    optimizer = make(model)
    pruner = Pruner(
        *(model, None, STEPS, 0.6), growth="rigl", every=4, optimizer=optimizer, ternary_at=0.5
    )
    fresh = dropped = 0
    for step in range(1, STEPS + 1):
        before = copy.deepcopy([dict(model.named_parameters()), optimizer.state_dict()["state"]])
        old = {target.name: target.mask.clone() for target in pruner._targets}
        due = pruner._growing.due(step)
        train_step(model, optimizer, step)
        pruner.step()
        if not due:
            continue
        changed = {}
        for target in pruner._targets:
            stays = old[target.name] & target.mask
            changed[id(target.weight)] = stays
            fresh += int((target.mask & ~old[target.name]).sum())
            dropped += int((old[target.name] & ~target.mask).sum())
            assert not target.weight[~stays].any()
        for place, (name, parameter) in enumerate(model.named_parameters()):
            stays = changed.get(id(parameter), torch.ones_like(parameter, dtype=torch.bool))
            assert torch.equal(parameter[stays], before[0][name][stays]), name
            for key, value in optimizer.state_dict()["state"].get(place, {}).items():
                known = before[1][place][key]
                same = stays if value.shape == stays.shape else torch.ones_like(value) > 0
                assert torch.equal(value[same], known[same]), (name, key)
                assert value.shape != stays.shape or not value[~stays].any()
    assert fresh > 10 and dropped > 10


def test_dense_gradients_are_read_once_for_each_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = GrowthRun.read, []
    monkeypatch.setattr(
        GrowthRun, "read", lambda run, targets: reads.append(pruner._step + 1) or read(run, targets)
    )
    model = quantized_net(scope="layer")
    optimizer = sgd(model)
    pruner = Pruner(model, None, STEPS, growth="rigl", every=EVERY, optimizer=optimizer)
    dense = []
    for step in range(STEPS):
        if ternary_layers(model)[0].dense_gradient:
            dense.append(step + 1)
        train_step(model, optimizer, step)
        pruner.step()
    assert reads == dense == [step for step in range(3, 15) if step % EVERY == 0]


@pytest.mark.parametrize("phase", ["float", "ternary"])
@pytest.mark.parametrize("ternarizer", ["ptq", "twn", "ttq", "int8"])
def test_gradients_reach_pruned_weights_in_every_phase(phase: str, ternarizer: str) -> None:
    kind = {"weights": "int8"} if ternarizer == "int8" else {"ternarizer": ternarizer}
    model = quantized_net(pattern="element", zeros=0.8, **kind)
    optimizer = sgd(model)
    times = {"ternary_at": 0.9 if phase == "float" else 0.0}
    pruner = Pruner(model, None, STEPS, growth="rigl", every=3, optimizer=optimizer, **times)
    for step in range(2):
        train_step(model, optimizer, step)
        pruner.step()
    assert pruner.phase == phase and pruner._growing.due(3)
    backward(model, optimizer, 2)
    for target in pruner._targets:
        holes = ~target.mask
        reached = target.weight.grad[holes] != 0
        assert reached.float().mean() > 0.5, target.name


def trained(growth: Growth, scope: str = "layer", steps: int = 9) -> tuple[Pruner, Any]:
    torch.manual_seed(3)
    model = float_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, None, STEPS, 0.6, growth=growth, scope=scope, optimizer=optimizer)
    for step in range(steps):
        train_step(model, optimizer, step)
        pruner.step()
    return pruner, (model, optimizer)


def test_snfs_grows_by_running_means_and_moves_units_between_layers() -> None:
    pruner, (model, optimizer) = trained(SNFS(every=10, decay="constant"), "global")
    known = {name: value.clone() for name, value in pruner._growing.memory.items()}
    before = masks(pruner)
    backward(model, optimizer, 9)
    means = {t.name: 0.9 * known[t.name] + 0.1 * t.weight.grad for t in pruner._targets}
    optimizer.step()
    sizes = [t.weight.detach().abs() for t in pruner._targets]
    pruner.step()
    sizes_of = zip(pruner._targets, before, strict=True)
    share = [float(means[t.name].abs()[mask].mean()) for t, mask in sizes_of]
    kept = [int(m.sum()) for m in before]
    total = int(0.3 * sum(kept))
    grown = []
    for target, old, size in zip(pruner._targets, before, sizes, strict=True):
        gone, fresh = old & ~target.mask, target.mask & ~old
        if gone.any():
            assert float(size[gone].max()) <= float(size[old & target.mask].median())
        slopes = means[target.name].abs()
        if fresh.any() and not target.mask.all():
            assert float(slopes[fresh].min()) >= float(slopes[~target.mask & ~old].max())
        was = int(old.sum())
        grown.append(int(target.mask.sum()) - was + round(total * was / sum(kept)))
    # In proportion to the means over what was left, up to full layers.
    room = [old.numel() - int(old.sum()) + total * int(old.sum()) // sum(kept) for old in before]
    assert sum(t.mask.sum() for t in pruner._targets) == sum(kept)
    open_ = [i for i, n in enumerate(room) if grown[i] < n - 2]
    factors = [grown[i] / share[i] for i in open_]
    assert len(open_) == 2 and factors == pytest.approx([factors[0]] * 2, rel=0.05)
    assert total * share[0] / sum(share) > room[0]  # the first layer is full


def test_deep_r_drops_what_crossed_zero_and_keeps_signs() -> None:
    growth = DeepR(l1=0.05, temperature=1e-4)
    pruner, (model, optimizer) = trained(growth, steps=1)
    signs = {t.name: pruner._growing.memory.get(t.name) for t in pruner._targets}
    dropped = 0
    for step in range(1, 14):
        train_step(model, optimizer, step)
        moved = [t.weight.detach().clone() for t in pruner._targets]
        old = masks(pruner)
        pruner.step()
        for target, value, before in zip(pruner._targets, moved, old, strict=True):
            sign = pruner._growing.memory[target.name]
            assert signs[target.name] is None or torch.equal(signs[target.name], sign)
            crossed = before & (value * sign < 0)
            dropped += int(crossed.sum())
            assert not target.weight[crossed].any()
            stays = before & target.mask & ~crossed
            assert torch.equal(target.weight[stays], value[stays])
            assert int(target.mask.sum()) == int(before.sum())
    assert dropped > 20


def test_dnw_keeps_the_largest_latent_weights_of_every_step() -> None:
    pruner, (model, optimizer) = trained(DNW(), steps=4)
    changed = 0
    for step in range(4, 12):
        before = masks(pruner)
        train_step(model, optimizer, step)
        pruner.step()
        for target, old in zip(pruner._targets, before, strict=True):
            size = target.latent.abs()
            assert float(size[target.mask].min()) >= float(size[~target.mask].max())
            assert not target.weight[~target.mask].any() and target.latent[~target.mask].any()
            changed += int((old != target.mask).sum())
    assert changed > 0


def test_shuffled_gradients_are_rigl_with_other_places() -> None:
    made = {}
    for name in ("rigl", "shuffled", "random"):
        pruner, _ = trained(Growth(grow=name, every=4, fraction=0.5), steps=4)
        made[name] = torch.cat([mask.flatten() for mask in masks(pruner)])
    assert not torch.equal(made["rigl"], made["shuffled"])
    assert int(made["rigl"].sum()) == int(made["random"].sum()) == int(made["shuffled"].sum())


def test_growth_makes_the_rule_of_a_name() -> None:
    made = Growth("magnitude", "rigl", 50, 0.6, 0.2)
    assert made == RigL("magnitude", every=50, until=0.6, fraction=0.2)
    assert type(made) is RigL and made.skip_update and copy.deepcopy(made) == made
    # States of versions that applied the optimizer's step are those of skip_update=False.
    old = "RigL(fraction=0.3, until=0.75, random_start=True)"
    assert RigL(skip_update=False).plan() == old != RigL().plan()
    assert Growth(grow="set").plan() == "SET(fraction=0.3, until=0.75, random_start=True)"
    shapes = [Growth(grow="set", decay=d).fraction_at(0.375) for d in ("constant", "cosine", 3)]
    assert shapes == pytest.approx([0.3, 0.15, 0.3 * 0.125])
    with pytest.raises(BadConfig, match="rigl"):
        Growth()
    with pytest.raises(BadConfig, match="grow= with prune.Growth"):
        RigL(grow="set")
    for decay in ("linear", -1.0, True):
        with pytest.raises(BadConfig, match="decay"):
            RigL(decay=decay)


def test_a_criterion_of_its_own_drops_and_goes_into_the_state() -> None:
    growth = RigL("movement", every=3)
    pruner, (model, optimizer) = trained(growth, steps=5)
    state = copy.deepcopy([p.state_dict() for p in (model, optimizer, pruner)])
    assert set(state[2]["growth"]["drop"]) == {t.name for t in pruner._targets}
    twin, parts = trained(growth, steps=0)
    for part, saved in zip((*parts, twin), state, strict=True):
        part.load_state_dict(saved)
    for step in range(5, STEPS):
        for net, opt, prune in ((model, optimizer, pruner), (*parts, twin)):
            train_step(net, opt, step)
            prune.step()
    pairs = zip(model.parameters(), parts[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_that_a_closure_computes_are_refused() -> None:
    model = float_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, None, 9, 0.5, optimizer=optimizer, growth="rigl")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for arguments in ({"closure": lambda: 0.0}, {}):
        with pytest.raises(BadConfig, match="closure"):
            optimizer.step(*([] if arguments else [lambda: 0.0]), **arguments)
    optimizer.step(None)
    assert all(map(torch.equal, before, model.parameters())) and pruner.progress == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"growth": "rigl", "nested": False}, "nested=True with growth"),
        ({"growth": "dnw", "nested": False}, "nested=True with growth"),
        ({"growth": "rigl", "schedule": "agp"}, "random_start=False"),
        ({"growth": "rigl", "schedule": "one_cycle"}, "constant schedule"),
        ({"growth": "dnw", "schedule": "agp"}, "constant schedule"),
        ({"growth": RigL(random_start=False), "schedule": "iht"}, "only rises"),
        ({"growth": RigL(random_start=False), "schedule": "early_bird"}, "only rises"),
        ({"growth": "rigl", "optimizer": None}, "optimizer"),
        ({"growth": RigL(every=5), "every": 6}, "one number of steps"),
        ({"growth": RigL("size")}, "criterion as one of"),
        ({"growth": "rigl", "rewind": 0}, "growth or rewind"),
        ({"growth": "rigl", "zeros": 0.9, "min_nnz": 5}, "Lower zeros"),
    ],
)
def test_strategies_that_exclude_each_other(options: dict[str, Any], match: str) -> None:
    model = float_net()
    before = copy.deepcopy(model.state_dict())
    given = {"zeros": 0.5, "scope": "layer", "optimizer": sgd(model), **options}
    with pytest.raises(BadConfig, match=match):
        Pruner(model, total_steps=20, **given)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())

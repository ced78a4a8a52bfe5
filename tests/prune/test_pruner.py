# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, BadWeights, FormatError, UnsupportedModel
from ternary_ops.nn import TernaryConv2d
from ternary_ops.nn.patterns import get_pattern, unit_scores
from ternary_ops.prune import SCHEDULES, Pruner, one_cycle
from ternary_ops.quantize import TernaryConfig


def conv(i: int, o: int, config: TernaryConfig) -> TernaryConv2d:
    layer = TernaryConv2d(i, o, 3, padding=1, config=config)
    with torch.no_grad():
        layer.input_range.copy_(torch.tensor([-2.5, 3.0]))
    return layer


def quantized_net(**options: Any) -> nn.Sequential:
    config = TernaryConfig(**{"zeros": 0.8, **options})
    return nn.Sequential(
        conv(1, 6, TernaryConfig(weights="int8")),
        nn.ReLU(),
        conv(6, 10, config),
        nn.ReLU(),
        conv(10, 7, config),
        nn.Flatten(),
        nn.Linear(7 * 16, 5),
    )


def float_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 9, 3, padding=1, groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9 * 16, 11),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True)


OPTIMIZERS = [sgd, adam]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 1, 4, 4, generator=generator)
    y = torch.randint(0, 5, (8,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, steps: range) -> None:
    for seed in steps:
        train_step(model, optimizer, seed)
        pruner.step()


def ternary_layers(model: nn.Module) -> list[Any]:
    layers = [m for m in model.modules() if isinstance(m, TernaryConv2d)]
    return [m for m in layers if m.config.weights == "ternary"]


def empty(weight: Tensor, pattern: str) -> tuple[int, int]:
    scores = unit_scores(weight, get_pattern(pattern))
    return int((scores == 0).sum()), scores.numel()


TO_TARGET = sorted(name for name, schedule in SCHEDULES.items() if schedule.last == 1.0)


@pytest.mark.parametrize("schedule", TO_TARGET)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 37])
def test_the_target_is_met_to_one_unit_for_any_number_of_steps(schedule: str, steps: int) -> None:
    model = quantized_net(zeros=0.77)
    optimizer = sgd(model)
    pruner = Pruner(model, schedule, steps, optimizer=optimizer)
    freeze = max(1, round(0.9 * steps))
    for step in range(1, steps + 1):
        train(model, optimizer, pruner, range(step, step + 1))
        counts = [empty(layer.weight, "1x4") for layer in ternary_layers(model)]
        assert pruner.zeros == sum(c for c, _ in counts) / sum(n for _, n in counts)
        if step >= freeze:
            assert sum(c for c, _ in counts) == round(0.77 * sum(n for _, n in counts))
    assert pruner.progress == 1.0


@pytest.mark.parametrize("schedule", TO_TARGET)
@pytest.mark.parametrize("pattern", ["element", "1x4"])
def test_the_target_is_met_without_training_up_to_a_thousand_steps(
    schedule: str, pattern: str
) -> None:
    for steps in (*range(4, 24), 59, 100, 199, 200, 201, 397, 1000):
        torch.manual_seed(steps)
        model = nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 3))
        pruner = Pruner(model, schedule, steps, zeros=0.83, pattern=pattern, scope="layer")
        for _ in range(steps):
            pruner.step()
        for layer in model:
            count, units = empty(layer.weight, pattern)
            assert count == round(0.83 * units), steps


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


@pytest.mark.parametrize("pattern", ["element", "1x4", "2x2", "filter"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("zeros", [0.0, 0.3, 2 / 3, 0.85])
def test_patterns_and_scopes_count_exactly(pattern: str, scope: str, zeros: float) -> None:
    model = float_net()
    Pruner(model, total_steps=1, zeros=zeros, pattern=pattern, scope=scope).step()
    # The grouped layer has 2 channels a group: too narrow for a quad.
    used = {"3": "element" if pattern == "1x4" else pattern}
    counts = {
        name: (used.get(name, pattern), *empty(module.weight, used.get(name, pattern)))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    totals: dict[str, list[int]] = {}
    for name, (kind, count, units) in counts.items():
        total = totals.setdefault(kind if scope == "global" else name, [0, 0, 0])
        total[:] = [total[0] + count, total[1] + units, total[2] + 1]
    for count, units, layers in totals.values():
        assert count == min(round(zeros * units), units - layers)


def test_ties_are_split_to_reach_the_count() -> None:
    model = nn.Sequential(nn.Linear(30, 10, bias=False), nn.Linear(10, 7, bias=False))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    pruner = Pruner(model, total_steps=1, zeros=0.5)
    pruner.step()
    assert int((model[0].weight == 0).sum() + (model[1].weight == 0).sum()) == 185
    first = model[0].weight.detach().flatten() == 0
    # The first of equal scores go, except unit 0: the best one of its layer stays.
    assert first.nonzero().flatten().tolist() == list(range(1, 186))


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


def test_frozen_codes_have_exactly_the_zeros_asked_for() -> None:
    model = quantized_net(zeros=0.77)
    optimizer = sgd(model)
    pruner = Pruner(model, total_steps=30, optimizer=optimizer)
    train(model, optimizer, pruner, range(30))
    counts = [empty(layer.ternary()[0], "1x4") for layer in ternary_layers(model)]
    assert sum(c for c, _ in counts) == round(0.77 * sum(n for _, n in counts))


def test_ternary_from_the_first_step_on() -> None:
    model = quantized_net()
    Pruner(model, total_steps=10, ternary_at=0.0)
    assert {layer.phase for layer in ternary_layers(model)} == {"ternary"}


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


@pytest.mark.parametrize("freeze_at", [0.04, 0.3, 1.0])
def test_one_step_is_enough_wherever_the_freeze_is(freeze_at: float) -> None:
    model = quantized_net()
    pruner = Pruner(model, total_steps=1, ternary_at=0.0, freeze_at=freeze_at)
    pruner.step()
    assert pruner.phase == "frozen"
    assert pruner.zeros == pytest.approx(0.8, abs=0.003)


def test_int8_layers_are_never_pruned() -> None:
    model = quantized_net()
    before = model[0].weight.detach().clone()
    pruner = Pruner(model, total_steps=1)
    pruner.step()
    assert torch.equal(model[0].weight, before)
    assert [row.name for row in pruner.summary()] == ["2", "4"]


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


def test_dict_of_targets_and_skip() -> None:
    model = float_net()
    zeros = {"[03]": 0.5, "0": 0.25, "6": 0.9}  # the last glob that matches counts
    pruner = Pruner(model, total_steps=1, zeros=zeros, skip=["3"])
    before = model[3].weight.detach().clone()
    pruner.step()
    assert torch.equal(model[3].weight, before)
    rows = {row.name: row for row in pruner.summary()}
    assert {name: row.target for name, row in rows.items()} == {"0": 0.25, "6": 0.9}
    assert rows["0"].measured == round(0.25 * 54) / 54
    assert rows["6"].measured == round(0.9 * 1584) / 1584
    name, target, measured = pruner.summary()[0]
    assert (name, target, measured) == ("0", 0.25, rows["0"].measured)


def test_arguments_override_the_plan() -> None:
    model = quantized_net()
    pruner = Pruner(model, total_steps=1, zeros={"4": 0.5}, pattern="element", scope="layer")
    pruner.step()
    assert empty(model[4].weight, "element") == (315, 630)
    assert empty(model[2].weight, "element") == (432, 540)  # keeps 0.8 of its plan


def test_global_ranks_all_layers_together() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Conv2d(5, 6, 3))
    with torch.no_grad():
        model[1].weight.mul_(100)
    rows = {}
    for normalize in (False, True):
        copied = copy.deepcopy(model)
        pruner = Pruner(copied, total_steps=1, zeros=0.5, normalize=normalize)
        pruner.step()
        rows[normalize] = [row.measured for row in pruner.summary()]
        assert sum(int((layer.weight == 0).sum()) for layer in copied) == 335
    assert rows[False][0] > 0.8
    assert max(rows[True]) < 0.7


@pytest.mark.parametrize("weak", [0, 1, 2])
def test_no_layer_becomes_empty(weak: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[weak].weight.mul_(1e-6)
    Pruner(model, total_steps=1, zeros=0.9).step()
    best = model[weak].weight.abs().argmax()
    assert (model[weak].weight.flatten() != 0).nonzero().item() == best
    assert sum(int((layer.weight != 0).sum()) for layer in model) == 192 - round(0.9 * 192)


@pytest.mark.parametrize("min_nnz", [None, 1, 3])
def test_depthwise_filters_keep_survivors(min_nnz: int | None) -> None:
    layer = nn.Conv2d(32, 32, 3, groups=32)
    with torch.no_grad():
        layer.weight[:24].mul_(1e-3)
    pruner = Pruner(layer, total_steps=7, zeros=0.6, pattern="1x4", min_nnz=min_nnz)
    for _ in range(7):
        pruner.step()
    alive = (layer.weight != 0).sum((1, 2, 3))
    assert int(alive.min()) == (min_nnz or 1)
    assert int((layer.weight == 0).sum()) == round(0.6 * 288)


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


def test_tied_layers_share_one_target() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    model[2].weight = model[0].weight
    pruner = Pruner(model, total_steps=1, zeros=0.5)
    pruner.step()
    assert int((model[2].weight == 0).sum()) == 50
    assert len(pruner.summary()) == 1

    net = nn.Sequential(conv(8, 8, TernaryConfig()), conv(8, 8, TernaryConfig()))
    net[1].weight = net[0].weight
    Pruner(net, total_steps=1).step()
    assert torch.equal(net[0].mask, net[1].mask)
    assert not net[1].mask.all()


def test_masks_are_updated_about_200_times_at_most_and_end_exactly() -> None:
    model = nn.Linear(50, 50)
    pruner = Pruner(model, total_steps=5000, zeros=0.9)
    counts = set()
    for _ in range(5000):
        pruner.step()
        counts.add(int((model.weight == 0).sum()))
    assert 50 < len(counts) <= 201
    assert int((model.weight == 0).sum()) == 2250


@pytest.mark.parametrize("every", [1, 3, 100])
def test_an_early_end_leaves_the_rest_for_fine_tuning(every: int) -> None:
    model = nn.Linear(30, 30)
    pruner = Pruner(model, total_steps=10, zeros=0.9, end=0.5, every=every)
    measured = []
    for _ in range(10):
        pruner.step()
        measured.append(pruner.zeros)
    assert measured[3] < 0.9
    assert measured[4:] == [0.9] * 6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": -3}, "total_steps"),
        ({"total_steps": 2.5}, "total_steps"),
        ({"total_steps": None}, "total_steps"),
        ({"zeros": 1.0}, "zeros"),
        ({"zeros": -0.1}, "zeros"),
        ({"zeros": float("nan")}, "zeros"),
        ({"zeros": {"6": 1.5}}, "'6'"),
        ({"zeros": {"fc*": 0.5}}, r"fc\*"),
        ({"zeros": None}, "zeros"),
        ({"skip": ["layer9.*"]}, "layer9"),
        ({"skip": "head.*"}, "head"),
        ({"skip": ["*"]}, "skip"),
        ({"schedule": "twocycle"}, "one_cycle"),
        ({"pattern": "4by1"}, "element"),
        ({"scope": "local"}, "global"),
        ({"every": 0}, "every"),
        ({"min_nnz": -1}, "min_nnz"),
        ({"min_nnz": 17, "zeros": 0.99, "pattern": "element"}, "min_nnz"),
        ({"ternary_at": 0.95}, "ternary_at"),
        ({"freeze_at": 1.1}, "freeze_at"),
        ({"end": 0.95}, "end"),
        ({"start": 0.9}, "start"),
        ({"schedule": "one_shot", "end": 0.5}, "start=0.5"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(BadConfig, match=match) as caught:
        Pruner(float_net(), **{"total_steps": 10, "zeros": 0.5, **options})
    assert isinstance(caught.value, ValueError)


def test_models_with_nothing_to_prune_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="nn.Linear"):
        Pruner(nn.Sequential(nn.ReLU()), total_steps=1, zeros=0.5)
    with pytest.raises(UnsupportedModel, match="ternary layer"):
        Pruner(nn.Sequential(conv(4, 4, TernaryConfig(weights="int8"))), total_steps=1)


def test_an_optimizer_without_the_weights_is_refused() -> None:
    model = float_net()
    optimizer = torch.optim.SGD([model[0].weight, model[6].weight], lr=0.1)
    with pytest.raises(UnsupportedModel, match="for 3"):
        Pruner(model, total_steps=1, zeros=0.5, optimizer=optimizer)
    Pruner(model, total_steps=1, zeros=0.5, optimizer=optimizer, skip="3")


def test_computed_weights_are_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UnsupportedModel, match="parametrization"):
        Pruner(model, total_steps=1, zeros=0.5)
    with pytest.raises(UnsupportedModel, match="lazy"):
        Pruner(nn.Sequential(nn.LazyLinear(4)), total_steps=1, zeros=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = float_net()
    with torch.no_grad():
        model[3].weight[1, 1, 1, 1] = value
    pruner = Pruner(model, total_steps=1, zeros=0.5)
    with pytest.raises(BadWeights, match="in 3"):
        pruner.step()


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

# SPDX-License-Identifier: Apache-2.0
"""N:M and strided patterns: names, units, exact counts while they are pruned, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, TernaryOpsError, UnsupportedShape
from ternary_ops.nn.patterns import Pattern, from_mask, get_pattern, surplus, to_mask, unit_scores

NM = ("2:4", "1:4", "3:8", "1x4@1:4", "1x4@1:2", "2x4@1:4")
STRIDED = ("strided:4", "1x4@strided:2", "2x2@strided:4")
SHAPES = [(6, 16, 3, 3), (5, 32), (1, 16, 1, 5)]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 16, 3, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def blocks(kept: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Whether a block holds anything, [rows, cols, taps], of a mask [O, I, ...]."""
    rows, cols = max(pattern.rows, 1), max(pattern.cols, 1)
    o, i = kept.shape[:2]
    taps = kept.reshape(o, i, -1)
    return np.stack(
        [
            np.stack([taps[a : a + rows, b : b + cols].any((0, 1)) for b in range(0, i, cols)])
            for a in range(0, o, rows)
        ]
    )


def fullest(kept: np.ndarray, pattern: Pattern) -> int:
    """The most blocks that any `of` neighbors keep."""
    grid = blocks(kept, pattern)
    rows, cols, taps = grid.shape
    return int(grid.reshape(rows, cols // pattern.of, pattern.of, taps).sum(2).max())


def test_names() -> None:
    assert get_pattern("2:4") == Pattern("2:4", 1, 1, keep=2, of=4)
    assert get_pattern("element@2:4") == get_pattern("1x1@2:4") == get_pattern("2:4")
    assert get_pattern("1x4@1:4") == Pattern("1x4@1:4", 1, 4, keep=1, of=4)
    assert get_pattern("1x4@strided:8") == Pattern("1x4@strided:8", 1, 4, stride=8)
    assert get_pattern("strided:8").least_zeros == get_pattern("1x4").least_zeros == 0
    assert get_pattern("3:8").least_zeros == 0.625
    for name in ("4:2", "2:2", "0:4", "2:", "1x4@", "@2:4", "filter@1:2", "strided:1", "1x4@1x4"):
        with pytest.raises(BadConfig, match="element.*filter.*NxM.*2:4.*strided"):
            get_pattern(name)
    with pytest.raises(BadConfig, match="2:4"):
        get_pattern("1:2:4")


@pytest.mark.parametrize("name", [*NM, *STRIDED])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_masks_go_by_the_same_units(name: str, shape: tuple[int, ...]) -> None:
    pattern = get_pattern(name)
    weight = torch.randn(shape, dtype=torch.float64)
    units = pattern.units(weight.shape)
    masks = [to_mask(torch.arange(units) == unit, weight.shape, pattern) for unit in range(units)]
    assert torch.equal(sum(m.int() for m in masks), torch.ones(shape, dtype=torch.int))
    wanted = torch.stack([weight.abs()[m].sum() for m in masks])
    torch.testing.assert_close(unit_scores(weight, pattern), wanted)
    kept = torch.rand(units) < 0.5
    assert torch.equal(from_mask(to_mask(kept, weight.shape, pattern), pattern), kept)


def test_a_strided_unit_is_every_so_many_th_channel_of_a_filter() -> None:
    pattern = get_pattern("strided:4")
    mask = to_mask(torch.arange(8) == 6, torch.Size((2, 8, 3, 3)), pattern)
    assert [tuple(sorted({int(v) for v in at})) for at in mask.nonzero().T[:2]] == [(1,), (2, 6)]
    assert int(mask.sum()) == 18  # a filter, two channels, nine taps


@pytest.mark.parametrize("name", NM)
def test_surplus_is_all_but_the_best_of_each_group(name: str) -> None:
    pattern, shape = get_pattern(name), torch.Size((4, 64, 3))
    scores = torch.randint(0, 4, (pattern.units(shape),)).float()  # many equal ones
    found = surplus(scores, pattern, shape).view(pattern.grid(shape)).numpy()
    rows, cols, taps = pattern.grid(shape)
    values = scores.view(rows, cols, taps).numpy()
    for r in range(rows):
        for c in range(0, cols, pattern.of):
            for t in range(taps):
                group = [(values[r, c + j, t], j) for j in range(pattern.of)]
                out = {j for _, j in sorted(group)[: pattern.of - pattern.keep]}
                assert {j for j in range(pattern.of) if found[r, c + j, t]} == out


def prune(model: nn.Module, steps: int, **options: Any) -> Any:
    """Train a little; the count must be exact, and N:M hold, at the end."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner = tops.prune.Pruner(
        model, total_steps=steps, optimizer=optimizer, skip=["0", "8"], freeze_at=1.0, **options
    )
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        pruner.step()
    return pruner


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("zeros", [None, 0.9])
@pytest.mark.parametrize("name", NM)
def test_densities_are_exact_and_no_group_keeps_more(
    name: str, zeros: float | None, scope: str
) -> None:
    model, pattern = net(), get_pattern(name)
    pruner = prune(model, 5, zeros=zeros, pattern=name, scope=scope, schedule="agp", every=1)
    share = pattern.least_zeros if zeros is None else zeros
    convs = [model[3].weight.detach(), model[5].weight.detach()]
    empty = [int((unit_scores(w, pattern) == 0).sum()) for w in convs]
    units = [pattern.units(w.shape) for w in convs]
    if scope == "layer":
        assert empty == [round(share * n) for n in units]
    else:
        assert sum(empty) == round(share * sum(units))
    assert pruner.zeros == sum(empty) / sum(units)
    kept = [fullest(w.numpy() != 0, pattern) for w in convs]
    assert max(kept) == pattern.keep


@pytest.mark.parametrize("options", [{"nested": False}, {"growth": "rigl"}, {"min_nnz": 2}])
def test_exact_when_units_come_back_or_stay(options: dict[str, Any]) -> None:
    model, pattern = net(), get_pattern("1x4@1:4")
    schedule = "constant" if "growth" in options else "one_cycle"
    prune(model, 8, pattern="1x4@1:4", zeros=0.8, every=2, schedule=schedule, **options)
    convs = [model[3].weight.detach(), model[5].weight.detach()]
    units = sum(pattern.units(w.shape) for w in convs)
    assert sum(int((unit_scores(w, pattern) == 0).sum()) for w in convs) == round(0.8 * units)
    assert max(fullest(w.numpy() != 0, pattern) for w in convs) == 1


@pytest.mark.parametrize("name", ["strided:8", "1x4@strided:4", "4x4", "filter", "element", "1x4"])
@pytest.mark.parametrize("zeros", [0.5, 0.75, 0.9])
def test_the_other_patterns_are_exact_too(name: str, zeros: float) -> None:
    model, pattern = net(), get_pattern(name)
    prune(model, 3, zeros=zeros, pattern=name)
    convs = [model[3].weight.detach(), model[5].weight.detach()]
    units = sum(pattern.units(w.shape) for w in convs)
    assert sum(int((unit_scores(w, pattern) == 0).sum()) for w in convs) == round(zeros * units)


@pytest.mark.parametrize("weights", ["ternary", "int8"])
@pytest.mark.parametrize("name", ["2:4", "1x4@1:4", "1x4@strided:4"])
def test_a_quantized_network_keeps_the_pattern_to_the_program(name: str, weights: str) -> None:
    model, x = net(), torch.randn(2, 3, 9, 9)
    zeros = 0.5 if "strided" in name else None  # N:M says it itself
    config = tops.TernaryConfig(weights, zeros=zeros, pattern=name, scope="layer")
    tops.quantize_(model, tops.plan(model, config))
    assert model[3].config.zeros == {"2:4": 0.5, "1x4@1:4": 0.75, "1x4@strided:4": 0.5}[name]
    tops.prune.Pruner(model, "one_shot", total_steps=1).step()
    tops.calibrate(model, [x])
    program = tops.compile(model, x)
    rows = {w.name: w for w in program.graph.weights}
    assert rows["3"].planned.name == name and rows["3"].reached is not None
    for layer in ("3", "5"):
        values = rows[layer].array.transpose(0, 3, 1, 2)  # [O, I, R, S]
        assert (values == 0).mean() >= model[3].config.zeros
        if get_pattern(name).of:
            assert fullest(values != 0, get_pattern(name)) <= get_pattern(name).keep
    with torch.no_grad():
        wanted = model.eval()(x).numpy()
    np.testing.assert_allclose(program(x.numpy()), wanted, rtol=0.05, atol=0.05)


def test_what_does_not_divide_is_refused_by_name() -> None:
    model = net()
    model[8] = nn.Linear(10, 10)

    def asked(call: Any, match: str, error: type[TernaryOpsError] = UnsupportedShape) -> None:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(error, match=match):
            call()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    # apex makes masks of such layers all True (NVIDIA/apex#1387).
    asked(lambda: tops.prune.Pruner(model, total_steps=3, pattern="2:4"), "'0'.*'2:4'.*got 3")
    config = tops.TernaryConfig(pattern="1x4@1:8")
    asked(lambda: tops.plan(model, config), "'3'.*'1x4@1:8' divides, 32 or a multiple, got 16")
    config = tops.TernaryConfig(pattern="1x4@strided:8")
    asked(lambda: tops.plan(model, config), "'3'.*'1x4@strided:8'.*got 16")
    rules = {"8": tops.TernaryConfig(pattern="2:4")}
    asked(lambda: tops.plan(model, rules=rules), "'8'.*'2:4' divides, 4 or a multiple, got 10")
    deep = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(UnsupportedShape, match="'0'.*'2:4'.*got 1"):
        tops.prune.Pruner(deep, total_steps=3, pattern="2:4")
    few = {"zeros": 0.3, "pattern": "2:4", "skip": ["0", "8"]}
    asked(lambda: tops.prune.Pruner(model, total_steps=3, **few), "zeros >= 0.5.*3, 5", BadConfig)


def test_growth_fills_free_places_alone() -> None:
    """Of the units that may come back, exactly those of the highest scores do."""
    pattern, shape = get_pattern("1:4"), torch.Size((1, 16))
    scores = torch.arange(16.0)
    kept = torch.zeros(16, dtype=torch.bool)
    kept[[1, 6]] = True  # two of four groups are full
    room = ~(kept | surplus(scores.masked_fill(kept, torch.inf), pattern, shape))
    assert room.nonzero().flatten().tolist() == [11, 15]


@pytest.mark.parametrize("name", ["2:4", "1x4@1:2", "1x4@1:4"])
@pytest.mark.parametrize("method", ["reconstruct_", "fisher_"])
def test_pruning_at_once_keeps_the_pattern_too(method: str, name: str) -> None:
    """Their costs are infinite where they were not worked out: such units must not break a tie."""
    model, pattern = net().eval(), get_pattern(name)
    data = [(torch.randn(16, 3, 9, 9), torch.randint(0, 10, (16,))) for _ in range(2)]
    getattr(tops.prune, method)(model, data, pattern=name, skip=["0", "8"])
    convs = [model[3].weight.detach(), model[5].weight.detach()]
    for weight in convs:
        assert fullest(weight.numpy() != 0, pattern) == pattern.keep
        empty = int((unit_scores(weight, pattern) == 0).sum())
        assert empty == round(pattern.least_zeros * pattern.units(weight.shape))

# SPDX-License-Identifier: Apache-2.0
"""Scores of filters, and the choice of those that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from channel_networks import image, network
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedModel, UnsupportedShape
from ternary_ops.prune import (
    FILTER_SCORES,
    choose,
    filter_score,
    groups,
    register_filter_score,
    remove_,
)
from ternary_ops.prune.filter_costs import FilterCosts

BLOCKS = [("residual", "grouped"), ("dense", "depthwise"), ("residual", "gated")]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip


def labelled() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 3, 8, 8), torch.randint(0, 4, (6,))) for _ in range(2)]


@pytest.mark.parametrize("name", list(FILTER_SCORES))
def test_a_filter_without_any_effect_scores_lowest(name: str) -> None:
    model = chain()
    with torch.no_grad():
        model[0].weight[5] *= 1e-3
        model[1].weight[5] = 1e-3
        model[1].bias[5] = -1 if name == "apoz" else 0
        model[3].weight[:, 5] = 0
        model[4].weight.uniform_(0.5, 1.5)
        if name == "fpgm":  # nearest to all others
            model[0].weight[5] = model[0].weight[torch.arange(8) != 5].mean(0)
    scores = filter_score(name)(groups(model, labelled()[0][0]), model, labelled())
    assert {key: len(value) for key, value in scores.items()} == {"0": 8, "3": 12}
    assert int(scores["0"].argmin()) == 5 and scores["3"].std() > 0
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_pfp_is_the_largest_share_of_a_sum() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    x = torch.rand(5, 3)
    hidden = model[1](model[0](x))
    terms = (hidden[:, None] * model[2].weight).abs()
    wanted = (terms / terms.sum(2, keepdim=True).clamp_min(1e-30)).amax((0, 1))
    found = filter_score("pfp")(groups(model, x), model, [x])["0"]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("what", ["params", "macs", "widths"])
def test_the_choice_meets_its_share(blocks: tuple[str, ...], scope: Any, what: str) -> None:
    model, x = network(0, *blocks), image()
    found = groups(model, x)
    torch.manual_seed(0)
    scores = {g.name: torch.rand(g.width) for g in found.free}
    kept = choose(found, scores, **{what: 0.8}, scope=scope, round_to=1)
    removal = remove_(model, x, kept, round_to=1)
    assert all(torch.equal(removal.kept[name], index) for name, index in kept.items())
    costs = FilterCosts(found.free)
    widths = {name: len(index) for name, index in kept.items()}
    assert costs.parameters(widths) == pytest.approx(removal.parameters[1])
    assert costs.multiply_adds(widths) == pytest.approx(removal.multiply_adds[1])
    before = {g.name: g.width for g in found.free}
    shares = {
        "params": removal.parameters[1] / removal.parameters[0],
        "macs": removal.multiply_adds[1] / removal.multiply_adds[0],
        "widths": sum(widths.values()) / sum(before.values()),
    }
    assert 0.5 < shares[what] <= 0.8
    for g in found.free:
        gone = torch.ones(g.width, dtype=torch.bool)
        gone[kept[g.name]] = False
        if g.parts == 1 and gone.any():
            assert scores[g.name][gone].max() <= scores[g.name][~gone].min()


def test_widths_are_multiples_and_never_zero() -> None:
    model = chain()
    found = groups(model, image().float())
    scores = {"0": torch.arange(8.0), "3": torch.arange(12.0)}
    kept = choose(found, scores, widths=0.41)
    assert {name: len(index) for name, index in kept.items()} == {"0": 4, "3": 4}
    with pytest.raises(BadConfig, match="can be reached"):
        choose(found, scores, widths=0.3)


def test_a_score_of_ones_own() -> None:
    def last(found: Any, model: nn.Module, batches: Any = None) -> dict[str, Tensor]:
        return {g.name: torch.arange(g.width).float() for g in found.free}

    register_filter_score("last_stay", last)
    try:
        found = groups(chain(), image().float())
        scores = filter_score("last_stay")(found, chain())
        assert choose(found, scores, widths=0.7, scope="layer")["3"].tolist() == list(range(4, 12))
    finally:
        del FILTER_SCORES["last_stay"]


def test_bad_arguments_are_named() -> None:
    model, x = chain(), image().float()
    found = groups(model, x)
    scores = filter_score("l2")(found, model)
    with pytest.raises(BadConfig, match="one of params, macs and widths"):
        choose(found, scores)
    with pytest.raises(BadConfig, match="one of params, macs and widths"):
        choose(found, scores, params=0.5, macs=0.5)
    with pytest.raises(BadConfig, match=r"params in 0\.\.1"):
        choose(found, scores, params=0)
    with pytest.raises(BadConfig, match="scope"):
        choose(found, scores, params=0.5, scope="row")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedShape, match=r"finite scores \[8\] of group 0"):
        choose(found, {**scores, "0": scores["0"] * torch.nan}, params=0.5)
    with pytest.raises(BadConfig, match="a filter score as one of l1"):
        filter_score("l3")
    for name in ("taylor", "pfp"):
        with pytest.raises(BadConfig, match="batches"):
            filter_score(name)(found, model)
    with pytest.raises(BadConfig, match="labels"):
        filter_score("taylor")(found, model, [x])
    bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(UnsupportedModel, match="a norm with a scale"):
        filter_score("slimming")(groups(bare, x), bare)

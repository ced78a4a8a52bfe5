# SPDX-License-Identifier: Apache-2.0
"""What the Pruner refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pruning import (
    conv,
    float_net,
)
from torch import nn

from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel
from ternary_ops.prune import Pruner
from ternary_ops.quantize import TernaryConfig


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

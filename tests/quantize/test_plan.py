# SPDX-License-Identifier: Apache-2.0
"""TernaryConfig, plan and quantize_: what is decided, why, and what quantize_ makes of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import ternary_ops as tops
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel
from ternary_ops.nn import TernaryConv2d, TernaryLayer, TernaryLinear
from ternary_ops.quantize import Plan, TernaryConfig, plan, quantize_

INT8 = TernaryConfig(weights="int8")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 16, 1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 3, groups=8, padding=1),
            nn.Conv2d(16, 12, 3, groups=2),
        )
        self.head = nn.ModuleDict({"hidden": nn.Linear(12, 10), "fc": nn.Linear(10, 5)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(torch.relu(self.stem(x))).mean((2, 3))
        return self.head["fc"](torch.relu(self.head["hidden"](x)))


def actions(made: Plan) -> dict[str, str]:
    return {row.name: row.action for row in made}


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": "binary"},
        {"scope": "model"},
        {"activations": "int8"},
        {"pattern": "quad"},
        {"pattern": "0x4"},
        {"ternarizer": "tqt"},
        {"ternarizer": None},
        {"zeros": 1.0},
        {"zeros": -0.1},
        {"zeros": float("nan")},
        {"zeros": True},
        {"zeros": "0.9"},
    ],
    ids=str,
)
def test_a_config_refuses_what_it_does_not_know(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadConfig, match=r"(?s)got .*\n  \S"):
        TernaryConfig(**wrong)


def test_a_config_is_frozen_and_survives_json() -> None:
    config = TernaryConfig(ternarizer="twn", zeros=0.5, pattern="2x4", scope="layer")
    assert TernaryConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(AttributeError):
        config.zeros = 0.1  # type: ignore[misc]
    with pytest.raises(BadConfig, match="zero"):
        TernaryConfig.from_dict({"zero": 0.5})


def test_the_default_plan() -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    made = tops.plan(model, TernaryConfig(zeros=0.8))
    assert actions(made) == {
        "stem": "int8",
        "body.0": "int8",
        "body.1": "ternary",
        "body.3": "ternary",
        "body.4": "ternary",
        "head.hidden": "ternary",
        "head.fc": "int8",
    }
    assert (made["stem"].reason, made["body.0"].reason) == ("first convolution", "depthwise")
    assert made["head.fc"].reason == "last linear layer"
    assert (made["body.1"].type, made["body.1"].shape) == ("Conv2d", (16, 8, 1, 1))
    assert made["body.1"].pattern == "1x4" and made["body.1"].config == TernaryConfig(zeros=0.8)
    assert made["body.3"].pattern == "element" and "2 input channels" in made["body.3"].reason
    assert made["body.3"].config == TernaryConfig(zeros=0.8, pattern="element")
    assert made["body.4"].pattern == "1x4"  # 8 channels per group
    assert made["stem"].config == TernaryConfig(weights="int8", zeros=0.0)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert not any(isinstance(m, TernaryLayer) for m in model.modules())


def test_rules_override_the_default_and_the_last_match_counts() -> None:
    rules = {
        "*": TernaryConfig(pattern="element"),
        "body.*": TernaryConfig(weights="float"),
        "body.4": INT8,
    }
    made = plan(Net(), TernaryConfig(), rules=rules)
    assert actions(made) == {
        "stem": "ternary",
        "body.0": "float",
        "body.1": "float",
        "body.3": "float",
        "body.4": "int8",
        "head.hidden": "ternary",
        "head.fc": "ternary",
    }
    assert made["stem"].pattern == "element" and made["stem"].reason == "rule '*'"
    assert made["body.1"].config is None and made["body.4"].config == INT8


def test_only_and_skip() -> None:
    made = plan(Net(), only=["body.*", "stem"], skip="body.4")
    assert {n for n, a in actions(made).items() if a == "skip"} == {
        "body.4",
        "head.hidden",
        "head.fc",
    }
    assert (made["body.4"].reason, made["head.fc"].reason) == ("in skip", "not in only")


@pytest.mark.parametrize("argument", ["rules", "only", "skip"])
@pytest.mark.parametrize("glob", ["heads.*", "body.2", "head", ""])
def test_a_glob_that_matches_nothing_raises(argument: str, glob: str) -> None:
    given: Any = {glob: INT8} if argument == "rules" else ["stem", glob]
    with pytest.raises(BadConfig, match=r"stem, body\.0.*got '"):
        plan(Net(), **{argument: given})


@pytest.mark.parametrize("weights", ["int8", "float"])
def test_a_plan_without_ternary_layers(weights: str) -> None:
    made = plan(Net(), TernaryConfig(weights=weights))
    assert set(actions(made).values()) == {weights}
    assert all(row.pattern == "" for row in made)


def test_a_plan_prints_as_a_table_and_survives_json() -> None:
    made = plan(Net(), rules={"stem": TernaryConfig(weights="float")}, skip=["head.fc"])
    lines = str(made).splitlines()
    assert lines[0].split() == ["name", "type", "shape", "action", "pattern", "reason"]
    assert len(lines) == 2 + len(made)
    assert "16x8x1x1" in str(made) and "depthwise" in str(made)
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


class Subclass(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sort(1).values


def weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def old_weight_norm() -> nn.Module:
    return torch.nn.utils.weight_norm(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.ConvTranspose2d(4, 4, 3), "no ternary twin"),
        (lambda: nn.Conv1d(4, 4, 3), "no ternary twin"),
        (lambda: nn.Embedding(4, 4), "no ternary twin"),
        (lambda: nn.LSTM(4, 4), "no ternary twin"),
        (lambda: Subclass(4, 4, 3), "a subclass of Conv2d"),
        (weight_norm, "parametrized"),
        pytest.param(
            old_weight_norm, "hook", marks=pytest.mark.filterwarnings("ignore:.*weight_norm")
        ),
        (lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 3), "hook"),
        (lambda: nn.LazyLinear(4), "run the model once"),
        (lambda: nn.Linear(4, 4, dtype=torch.complex64), "complex64"),
    ],
)
def test_layers_that_cannot_be_quantized_say_why(
    make: Callable[[], nn.Module], reason: str
) -> None:
    odd = make()
    model = nn.Sequential(nn.Linear(4, 4), odd, nn.Linear(4, 4))
    made = plan(model, rules={"*": TernaryConfig()})
    assert made["1"].action == "skip" and reason in made["1"].reason
    assert actions(made)["0"] == "ternary"
    quantize_(model, made)
    assert model[1] is odd and isinstance(model[0], TernaryLinear)


def test_attention_keeps_its_projections() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 2))
    made = plan(model)
    assert made["1.self_attn"].action == made["1.self_attn.out_proj"].action == "skip"
    assert made["1.linear1"].action == "ternary" and made["2"].action == "int8"


def test_the_fused_encoder_of_torch_does_not_bypass_quantized_layers() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    model = nn.Sequential(encoder, nn.Linear(8, 2))
    quantize_(model, TernaryConfig())
    x = torch.randn(3, 4, 8)
    with torch.no_grad():  # where torch would read linear1.weight itself
        fused = model(x)
    assert torch.allclose(fused, model(x), atol=1e-5)


def test_tied_weights_are_left_alone() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 8), "mid": nn.Linear(8, 8)})
    model["out"] = nn.Linear(8, 9)
    model["out"].weight = model["embed"].weight
    made = plan(model)
    assert made["out"].action == "skip" and "tied to embed" in made["out"].reason
    quantize_(model, made)
    assert model["out"].weight is model["embed"].weight


def test_a_shared_layer_is_one_row_and_is_replaced_everywhere() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 2))
    made = plan(model, skip="3")
    assert [row.name for row in made] == ["0", "3"] and "also 2" in made["0"].reason
    assert plan(model, rules={"2": INT8})["0"].action == "int8"  # by its other name
    quantize_(model, made)
    assert isinstance(model[0], TernaryLinear) and model[0] is model[2]


def test_a_layer_alone_is_no_model() -> None:
    made = plan(nn.Linear(4, 4))
    assert made[""].action == "skip" and "nn.Sequential" in made[""].reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model = Net()
    model.body[1].weight.data[3, 2, 0, 0] = value
    with pytest.raises(BadWeights, match=r"(nan|inf) at body\.1\.weight\[3, 2, 0, 0\]"):
        plan(model)
    with pytest.raises(BadWeights):
        quantize_(model, TernaryConfig())
    assert not any(isinstance(m, TernaryLayer) for m in model.modules())


def test_quantize_keeps_parameters_mode_and_hooks() -> None:
    model = Net().eval()
    stem, parameters = model.stem, dict(model.named_parameters())
    calls: list[str] = []
    model.stem.register_forward_hook(lambda *_: calls.append("hook"))
    made = quantize_(model, TernaryConfig(zeros=0.7))
    assert isinstance(model.stem, TernaryConv2d) and model.stem.weight is stem.weight
    for name, parameter in parameters.items():
        assert dict(model.named_parameters())[name] is parameter
    assert not any(m.training for m in model.modules())
    model(torch.randn(2, 3, 12, 12))
    assert calls == ["hook"]
    for row in made:
        layer = model.get_submodule(row.name)
        assert isinstance(layer, TernaryLayer) and layer.config == row.config


def test_quantizing_again_changes_nothing() -> None:
    model = Net()
    made = quantize_(model, TernaryConfig())
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    assert quantize_(model, made) == made
    again = quantize_(model, TernaryConfig(weights="int8"))
    assert actions(again) == actions(made) and again["body.1"].reason == "already quantized"
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)


def test_the_order_of_partial_plans_does_not_matter() -> None:
    start = Net()
    one, two = copy.deepcopy(start), copy.deepcopy(start)
    quantize_(one, plan(one, only="body.*"))
    quantize_(one, plan(one, skip="body.*"))
    quantize_(two, plan(two))
    assert [type(m) for m in one.modules()] == [type(m) for m in two.modules()]
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(one(x), two(x))


def test_a_plan_of_another_model_is_refused_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for other in (
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5)),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)),
    ):
        with pytest.raises(UnsupportedModel, match="Make the plan from this model"):
            quantize_(model, plan(other, TernaryConfig(weights="int8")))
        assert type(model[0]) is nn.Linear
    conv = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    transposed = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1))
    with pytest.raises(UnsupportedModel, match="ConvTranspose2d"):
        quantize_(transposed, plan(conv))
    assert type(transposed[0]) is nn.Conv2d

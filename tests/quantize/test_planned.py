# SPDX-License-Identifier: Apache-2.0
"""What was planned, what runs, and what is finished: counted, and named where they differ."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.nn.patterns import get_pattern, unit_scores
from ternary_ops.quantize import TernaryConfig, calibrate, plan, quantize_

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = TernaryConfig(zeros=0.5, pattern="element")


class Net(nn.Module):
    """Three layers; `middle` says how the second is reached."""

    def __init__(self, middle: str = "called") -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, second = nn.Linear(8, 4), self.second
        self.middle = middle
        self.listed: Any = {"list": [second], "tuple": (second,), "dict": {"a": [second]}}
        self.closure = lambda x: second(x)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.middle == "function":
            x = F.conv2d(x, self.second.weight, self.second.bias, padding=1)
        elif self.middle == "both":
            x = self.second(x) + F.conv2d(x, self.second.weight, None, padding=1)
        elif self.middle == "closure":
            x = self.closure(x)
        elif self.middle == "called":
            x = self.second(x)
        else:
            held = self.listed[self.middle]
            x = (held["a"][0] if isinstance(held, dict) else held[0])(x)
        return self.last(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("activations", ["uint8", "float32"])
@pytest.mark.parametrize("middle", ["list", "tuple", "dict"])
def test_layers_in_plain_containers_are_replaced_there_too(middle: str, activations: str) -> None:
    model = Net(middle).eval()
    quantize_(model, TernaryConfig(zeros=0.0, activations=activations))
    if activations == "uint8":
        calibrate(model, [X])
    assert model.second.calls in (1, None)
    kinds = {w.name: w.kind for w in tops.compile(model, X).graph.weights}
    assert kinds == {"first": "int8", "second": "ternary", "last": "int8"}
    wanted = model(X)
    tops.pack_(model)
    assert isinstance(model.second, tops.nn.PackedConv2d)
    assert (model(X) - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("activations", ["uint8", "float32"])
def test_a_replaced_layer_that_still_runs_is_refused(activations: str) -> None:
    model = Net("closure").eval()
    quantize_(model, TernaryConfig(zeros=0.0, activations=activations))
    modules = list(model.modules())
    if activations == "uint8":
        with pytest.raises(UnsupportedModel, match=r"float layers before second, .*outside"):
            calibrate(model, [X])
        assert model.first.input_range.isnan().all()
    for refuses in (lambda: tops.pack_(model), lambda: tops.compile(model, X)):
        with pytest.raises(UnsupportedModel, match=r"(?s)float layers before second.*\n  Call"):
            refuses()
    assert list(model.modules()) == modules


def test_a_layer_outside_the_tree_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Net("list").eval()
    del model.second
    place = r"Conv2d in Net.listed\['list'\]\[0\]"
    made = plan(model, example=X)
    assert [row.name for row in made] == ["first", "last"]
    assert "neither planned nor saved: Conv2d in Net.listed['list'][0]" in caplog.text
    with pytest.raises(UnsupportedModel, match=rf"layers that run in the module tree, got {place}"):
        tops.compile(model, X)


@pytest.mark.parametrize("activations", ["uint8", "float32"])
@pytest.mark.parametrize("middle", ["function", "both"])
def test_a_latent_weight_in_a_function_is_a_call_that_packed_layers_refuse(
    middle: str, activations: str
) -> None:
    model = Net(middle).eval()
    quantize_(model, TernaryConfig(zeros=0.0, activations=activations))
    if activations == "uint8":
        calibrate(model, [X])
    tops.compile(model, X)
    with pytest.raises(
        UnsupportedModel, match=r"second: (the model's code hands|its weight is read)"
    ):
        tops.pack_(model)
    assert not any(isinstance(m, tops.nn.PackedLayer) for m in model.modules())


def test_calibrating_without_a_layer_that_runs_is_refused() -> None:
    model = nn.Sequential(Net("closure"))
    model[0].closure = F.relu
    quantize_(model, plan(model, TernaryConfig(zeros=0.0), only="0.second"))
    with pytest.raises(UnsupportedModel, match=r"no call of 0\.second"):
        calibrate(model, [X])


class Auxiliary(nn.Module):
    """A second head that training alone uses, declared last; layers not in running order."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.stem = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.head, self.hidden, self.extra = nn.Linear(8, 4), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.body(F.relu(self.stem(x)))).mean((2, 3))
        y = self.head(F.relu(self.hidden(x)))
        return (y, self.extra(x)) if self.training else y


def test_first_and_last_go_by_execution() -> None:
    model = Auxiliary()  # in training mode: the extra head would run last
    traced, seen = plan(model), plan(model, example=X)
    for made in (traced, seen):
        assert made["stem"].reason == "first convolution" and made["body"].action == "ternary"
        assert made["head"].reason == "last linear layer" and made["hidden"].action == "ternary"
    assert model.training and model.stem.training
    assert traced["extra"].action == "ternary"
    assert (seen["extra"].action, "does not run" in seen["extra"].reason) == ("skip", True)
    ruled = plan(model, rules={"extra": TernaryConfig("int8")}, example=X)
    assert ruled["extra"].action == "int8"


def test_declaration_decides_where_nothing_else_is_known() -> None:
    class Opaque(Auxiliary):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x if x.sum() > 0 else -x)

    made = plan(Opaque())
    assert made["body"].reason == "first convolution (as declared: pass example)"
    assert made["extra"].reason == "last linear layer (as declared: pass example)"
    assert plan(Opaque(), example=X)["stem"].reason == "first convolution"


def test_a_head_that_does_not_run_is_named_and_packed(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = Auxiliary()
    quantize_(model, TernaryConfig(zeros=0.0))
    calibrate(model, [X, X])
    assert "extra was never computed in eval mode" in caplog.text
    calls = {n: m.calls for n, m in model.named_modules() if isinstance(m, tops.nn.TernaryLayer)}
    assert calls == {"body": 2, "stem": 2, "head": 2, "hidden": 2, "extra": 0}
    assert copy.deepcopy(model).extra.calls == 0 and not any(
        "calls" in k for k in model.state_dict()
    )
    program = tops.compile(model, X)
    assert "not run in eval mode, so not compiled: extra" in caplog.text
    assert "extra" not in [w.name for w in program.graph.weights]
    tops.save(model, tmp_path / "net.safetensors")
    loaded = tops.load(tmp_path / "net.safetensors", Auxiliary())
    tops.pack_(model)
    assert "packed with a float input: extra" in caplog.text
    for packed in (model, loaded):
        np.testing.assert_array_equal(tops.compile(packed.eval(), X)(X.numpy()), program(X.numpy()))
        assert torch.isfinite(packed.train()(X)[1]).all()


def trained(steps: int, total: int = 40, **config: Any) -> tuple[Any, tops.prune.Pruner]:
    torch.manual_seed(0)
    model = Auxiliary()
    quantize_(model, plan(model, TernaryConfig(**{"zeros": 0.5, **config})))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = tops.prune.Pruner(model, total_steps=total, optimizer=optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X)[0].square().sum().backward()
        optimizer.step()
        pruner.step()
    calibrate(model, [X])
    return model, pruner


@pytest.mark.parametrize("steps", [4, 20, 35])
def test_half_way_is_refused(steps: int, tmp_path: Path) -> None:
    model, _ = trained(steps)
    again = Auxiliary()
    quantize_(again, plan(again, TernaryConfig(zeros=0.5)))
    again.load_state_dict(model.state_dict())
    asked = [
        lambda **more: tops.compile(model, X, **more),
        lambda **more: tops.report(model, X, **more),
        lambda **more: tops.save(model, tmp_path / "net.safetensors", **more),
        lambda **more: tops.pack_(copy.deepcopy(model), **more),
    ]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for ask in asked:
        with pytest.raises(
            UnsupportedModel, match=rf"a Pruner at step {steps} of 40.*\n  Train on"
        ):
            ask()
        ask(allow_unfinished=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[key].nan_to_num(7.0)), key
    if steps == 4:  # a state from the middle, where no Pruner is
        with pytest.raises(UnsupportedModel, match='real weights .phase "float".'):
            tops.compile(again, X)


def test_finished_pruning_exports_and_shows_its_zeros(caplog: pytest.LogCaptureFixture) -> None:
    model, pruner = trained(36)
    assert pruner.phase == "frozen"
    assert "pruned, but never run in training: extra" in caplog.text
    caplog.clear()
    program = tops.compile(model, X)
    assert "zeros: planned" not in caplog.text
    for text in (program.summary(), str(tops.report(program, X).layer_table())):
        assert "planned zeros" in text and "50.0 % of 1x4" in text
    weight = next(w for w in program.graph.weights if w.name == "body")
    quads = (weight.array.reshape(-1, 4) == 0).all(1).mean()
    assert weight.reached == pytest.approx(quads) and 0.2 < quads < 0.8
    assert tops.report(program.rounded(), X).to_dict()["layers"][1]["planned"] == "50.0 % of 1x4"


def test_a_copy_follows_the_pruner_of_its_original() -> None:
    model, pruner = trained(4)
    average = copy.deepcopy(model)
    for _ in range(40):
        pruner.step()
    average.load_state_dict(model.state_dict())
    calibrate(average, [X])
    tops.compile(average, X)


def test_zeros_without_a_pruner_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Net()
    quantize_(model, TernaryConfig(zeros=0.75))
    calibrate(model, [X])
    program = tops.compile(model, X)
    wanted = "zeros: planned 75.0 % of units 1x4, pruned 0.0 % (no Pruner was attached) in second"
    assert wanted in caplog.text and "75.0 % of 1x4" in program.summary()
    caplog.clear()
    tops.pack_(model)
    assert wanted in caplog.text
    plain = Net()
    quantize_(plain, TernaryConfig(zeros=0.0))
    calibrate(plain, [X])
    caplog.clear()
    assert "planned" not in tops.compile(plain, X).summary() and "planned" not in caplog.text


def test_zeros_of_a_network_pruned_before_count(caplog: pytest.LogCaptureFixture) -> None:
    model = Net()
    pruner = tops.prune.Pruner(model, "constant", 2, 0.75, "1x4")
    for _ in range(2):
        pruner.step()
    quantize_(model, TernaryConfig(zeros=0.75))
    calibrate(model, [X])
    tops.compile(model, X)
    assert "no Pruner was attached" not in caplog.text


@pytest.mark.parametrize("pattern", ["1x4", "element", "filter", "2x3"])
def test_measured_zeros_are_those_of_the_pattern(pattern: str) -> None:
    model, pruner = trained(40, pattern=pattern)
    program = tops.compile(model, X)
    found = {w.name: w.reached for w in program.graph.weights if w.planned is not None}
    masks = {row.name: row.measured for row in pruner.summary()}
    for name, share in found.items():
        codes = model.get_submodule(name).integer_weight()[0].float()
        units = unit_scores(codes, get_pattern(pattern))
        assert share == pytest.approx(float((units == 0).float().mean())) and share >= masks[name]


def test_rules_for_quantized_layers() -> None:
    model = Net()
    quantize_(model, plan(model, TernaryConfig(zeros=0.5), only=["first", "second"]))
    other = TernaryConfig("int8", zeros=0.5)
    for rules in ({"second": other}, {"*": other}, {"sec*": TernaryConfig(weights="float")}):
        with pytest.raises(
            BadConfig, match=r"(?s)rule '.*'.*quantized with another config.*\n  \S"
        ):
            plan(model, rules=rules)
    kept = plan(model, rules={"second": TernaryConfig(zeros=0.5), "last": other})
    assert kept["second"].reason == "already quantized" and kept["last"].config == other
    assert plan(model, rules={"*": other}, skip=["first", "second"])["last"].config == other


def test_an_average_follows_the_pruner_and_takes_the_freeze() -> None:
    """An EMA copy made at the first step shares the Pruner's progress; both export at its end."""
    torch.manual_seed(0)
    model = Auxiliary()
    quantize_(model, plan(model, TernaryConfig(zeros=0.5), example=X))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = tops.prune.Pruner(model, total_steps=10, optimizer=optimizer)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for step in range(10):
        optimizer.zero_grad()
        sum(y.square().sum() for y in model.train()(X)).backward()
        optimizer.step()
        pruner.step()
        calibrate(model, [X])
        average.update_parameters(model)
        if step == 4:
            with pytest.raises(UnsupportedModel, match="a Pruner at step 5 of 10"):
                tops.compile(average, X)
    assert tops.compile(average, X)(X.numpy()).shape == tops.compile(model, X)(X.numpy()).shape

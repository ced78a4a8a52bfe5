# SPDX-License-Identifier: Apache-2.0
"""States that commit cf631c5 wrote, with integer masks, codes and phases and NaN for unset ranges,
load and give what they gave then.
"""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import state_networks as states
import torch
from checkout import DATA
from safetensors import safe_open
from torch import Tensor, nn

import ternary_ops as tops


def stored(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a case by key, and the plain part of its Pruner's state."""
    with safe_open(DATA / "states_v0.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118
        plan = json.loads((file.metadata() or {}).get(name, "{}"))
        return {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in keys}, plan


def under(tensors: dict[str, Tensor], folder: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{folder}/"): v for k, v in tensors.items() if k.startswith(folder)}


def check(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The network is the one that was stored."""
    old = under(tensors, "model")
    for name, layer in states.layers(model).items():
        assert layer.phase == ("float", "ternary", "frozen")[int(old[f"{name}.phase_code"])]
        assert torch.equal(layer.mask, old[f"{name}.mask"])
        for what in ("input_range", "output_range"):
            wanted = old[f"{name}.{what}"].nan_to_num(7)
            assert torch.equal(getattr(layer, what).nan_to_num(7), wanted)
    codes, scale = states.layers(model)["2"].integer_weight()
    assert torch.equal(codes, tensors["codes"])
    torch.testing.assert_close(scale, tensors["scale"])
    y = model.eval()(states.batch(200)[0][:2])
    torch.testing.assert_close(y, tensors["y"], rtol=1e-5, atol=1e-5)
    assert all(bool(v.isfinite().all()) for v in model.state_dict().values())


@pytest.mark.parametrize("name", states.CASES)
def test_a_state_dict_of_before_is_loaded_strictly(name: str) -> None:
    tensors, _ = stored(name)
    model = states.network(states.CASES[name])
    parameters = [p.shape for p in model.parameters()]
    model.load_state_dict(under(tensors, "model"), strict=True)
    check(model, tensors)
    again = states.network(states.CASES[name]).to("meta")
    again.load_state_dict(under(tensors, "model"), strict=True, assign=True)
    check(again, tensors)
    assert [p.shape for p in again.parameters()] == parameters  # those of old optimizer states


@pytest.mark.parametrize("name", ["frozen", "absmean"])
def test_files_and_programs_of_before_give_the_same(name: str) -> None:
    tensors, _ = stored(name)
    x = states.batch(200)[0][:2]
    torch.manual_seed(0)
    fresh = nn.Sequential(
        nn.Conv2d(3, 8, 2), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, bias=False), nn.BatchNorm2d(4),
        nn.ReLU(), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    y = tops.load(DATA / f"weights_{name}_v0.safetensors", fresh).eval()(x)
    torch.testing.assert_close(y, tensors["y"], rtol=1e-4, atol=1e-4)
    model = states.network(states.CASES[name])
    model.load_state_dict(under(tensors, "model"))
    program = torch.from_numpy(tops.compile(model.eval(), x)(x.numpy()))
    torch.testing.assert_close(program, tensors["program"], rtol=1e-5, atol=1e-5)


def resumed(name: str) -> tuple[nn.Module, torch.optim.SGD, tops.prune.Pruner]:
    tensors, plan = stored(name)
    case = states.CASES[name]
    model = states.network(case)
    optimizer, pruner = states.parts(model, case)
    assert pruner is not None
    model.load_state_dict(under(tensors, "model"))
    pruned = under(tensors, "pruned")
    state = {**plan, "pruned": [pruned[str(i)] for i in range(len(pruned))], "scores": {}}
    pruner.load_state_dict({**state, "latent": under(tensors, "latent")})
    momenta = under(tensors, "momentum")
    if momenta:
        fresh = optimizer.state_dict()
        fresh["state"] = {int(i): {"momentum_buffer": m} for i, m in momenta.items()}
        optimizer.load_state_dict(fresh)
    return model, optimizer, pruner


@pytest.mark.parametrize("name", [n for n, c in states.CASES.items() if n != "eleven"])
def test_a_pruner_of_before_goes_on(name: str) -> None:
    tensors, plan = stored(name)
    model, optimizer, pruner = resumed(name)
    check(model, tensors)
    states.train(model, optimizer, pruner, range(plan["step"], states.STEPS))
    assert pruner.phase == "frozen" and pruner.zeros == 0.5
    kept = states.layers(model)["2"].mask
    if plan["step"] >= 14 or states.CASES[name].pruner == {}:  # nested: pruned stays pruned
        assert not bool((kept & ~under(tensors, "model")["2.mask"]).any())


def old_form(layer: tops.nn.TernaryLayer, tensors: dict[str, Tensor]) -> tops.nn.TernaryLayer:
    """The layer with the attributes that a module pickled by cf631c5 has."""
    made = copy.deepcopy(layer)
    old = {k.removeprefix("2."): v for k, v in tensors.items() if k.startswith("2.")}
    bounds = nn.Parameter(old["input_range"])
    items = [("weight", nn.Parameter(old["weight"])), ("bias", None), ("input_range", bounds)]
    made.__dict__["_parameters"] = {**dict(items), "poles": None}
    names = ("mask", "output_range", "codes", "phase_code")
    made.__dict__["_buffers"] = {name: old[name] for name in names}
    del made.__dict__["_seen"]
    return made


def test_a_module_pickled_before_is_unpickled() -> None:
    tensors, _ = stored("frozen")
    model = states.network(states.CASES["frozen"])
    model.load_state_dict(under(tensors, "model"))
    old = old_form(states.layers(model)["2"], under(tensors, "model"))
    model[2] = pickle.loads(pickle.dumps(old))
    check(model, tensors)
    assert [n for n, _ in model[2].named_parameters()] == ["weight", "input_shift"]


def test_a_part_of_an_old_state_is_reported_by_torch() -> None:
    tensors, _ = stored("frozen")
    state = under(tensors, "model")
    del state["2.codes"]
    model = states.network(states.CASES["frozen"])
    with pytest.raises(RuntimeError, match=r'Missing key.*"2.marks"'):
        model.load_state_dict(state)
    del state["2.phase_code"]
    assert "2.mask" in model.load_state_dict(state, strict=False).unexpected_keys

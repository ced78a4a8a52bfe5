# SPDX-License-Identifier: Apache-2.0
"""Averages of a network over its training (EMA, SWA) are networks too, in every phase.

One short training with every kind of copy at its side; the copies are looked at in each phase.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import state_networks as states
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import ternary_ops as tops

Update = Callable[[nn.Module], None]
# Steps after which copies are looked at: real-valued, ternary, just frozen, frozen for a while.
STOPS = {3: "float", 8: "ternary", 13: "frozen", 19: "frozen"}


def averaged(model: nn.Module, **options: Any) -> tuple[nn.Module, Update]:
    """torch's own."""
    average = AveragedModel(model, **options)
    return average.module, average.update_parameters


def state_loop(model: nn.Module, decay: float, integers: str) -> tuple[nn.Module, Update]:
    """The loop that people write; integers: "skipped" or "copied"."""
    made = copy.deepcopy(model)

    @torch.no_grad()
    def update(model: nn.Module) -> None:
        own = made.state_dict()
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                own[key].mul_(decay).add_(value, alpha=1 - decay)
            elif integers == "copied":
                own[key].copy_(value)

    return made, update


def lerp(model: nn.Module, decay: float, buffers: bool) -> tuple[nn.Module, Update]:
    """What timm's ModelEmaV3 does, without and with exclude_buffers."""
    made = copy.deepcopy(model).eval()

    @torch.no_grad()
    def update(model: nn.Module) -> None:
        if buffers:
            for mine, its in zip(
                made.state_dict().values(), model.state_dict().values(), strict=True
            ):
                if mine.is_floating_point():
                    mine.lerp_(its, weight=1 - decay)
                else:
                    mine.copy_(its)
            return
        for p, q in zip(made.parameters(), model.parameters(), strict=True):
            p.lerp_(q, weight=1 - decay)
        for b, c in zip(made.buffers(), model.buffers(), strict=True):
            b.copy_(c)

    return made, update


KINDS: dict[str, Callable[[nn.Module, float], tuple[nn.Module, Update]]] = {
    "ema": lambda m, d: averaged(m, multi_avg_fn=get_ema_multi_avg_fn(d)),
    "ema, buffers": lambda m, d: averaged(
        m, multi_avg_fn=get_ema_multi_avg_fn(d), use_buffers=True
    ),
    "avg_fn, buffers": lambda m, d: averaged(m, avg_fn=get_ema_avg_fn(d), use_buffers=True),
    "loop, integers skipped": lambda m, d: state_loop(m, d, "skipped"),
    "loop, integers copied": lambda m, d: state_loop(m, d, "copied"),
    "timm": lambda m, d: lerp(m, d, True),
    "timm, no buffers": lambda m, d: lerp(m, d, False),
    # The mean has no decay; the copies below are those of 0.5.
    "swa": lambda m, d: averaged(m),
}
COPIES = [(kind, decay) for kind in KINDS for decay in (0.0, 0.5, 0.9995)]
COPIES = [(k, d) for k, d in COPIES if not k.startswith("swa") or d == 0.5]


class Look:
    """Model and copies as they were after one of the STOPS."""

    def __init__(self, model: nn.Module, copies: dict[tuple[str, float], nn.Module]) -> None:
        self.model = copy.deepcopy(model).eval()
        self.copies = {key: copy.deepcopy(made).eval() for key, made in copies.items()}


def looks(name: str) -> dict[int, Look]:
    """Train one of the cases to the end, calibrating at the freeze as docs recommend."""
    case = states.CASES[name]
    model = states.network(case, pool=False)
    # Copies are made before the Pruner or behind it: half of them each.
    makers = {key: KINDS[key[0]] for key in COPIES}
    made = {key: makers[key](model, key[1]) for key in COPIES[::2]}
    optimizer, pruner = states.parts(model, case)
    made |= {key: makers[key](model, key[1]) for key in COPIES[1::2]}
    found: dict[int, Look] = {}
    frozen = False

    def after(step: int) -> None:
        nonlocal frozen
        if pruner is not None and not frozen and pruner.phase == "frozen":
            frozen = True
            tops.calibrate(model, [states.batch(100)[0]])
            model.train()
        for _, update in made.values():
            update(model)
        if step in STOPS:
            found[step] = Look(model, {key: network for key, (network, _) in made.items()})

    states.train(model, optimizer, pruner, range(states.STEPS), after)
    return found


@pytest.fixture(scope="module", params=["frozen", "element", "ttq", "absmean"])
def run(request: pytest.FixtureRequest) -> dict[int, Look]:
    return looks(request.param)


def each(run: dict[int, Look]) -> list[tuple[str, Look, tuple[str, float], nn.Module]]:
    return [
        (f"{key} after step {step + 1}", look, key, made)
        for step, look in run.items()
        for key, made in look.copies.items()
    ]


def test_copies_are_in_the_phase_of_the_network_with_its_masks_and_frozen_codes(
    run: dict[int, Look],
) -> None:
    for what, look, _, made in each(run):
        for name, layer in states.layers(look.model).items():
            twin = states.layers(made)[name]
            assert twin.phase == layer.phase, what
            assert torch.equal(twin.mask, layer.mask), what
            if layer.phase == "frozen":
                assert torch.equal(twin.integer_weight()[0], layer.integer_weight()[0]), what
                assert torch.equal(twin.codes, layer.codes), what
    assert [next(iter(states.layers(look.model).values())).phase for look in run.values()] == list(
        STOPS.values()
    )


def test_decay_0_is_the_network_bit_for_bit(run: dict[int, Look]) -> None:
    x = states.batch(200)[0]
    for what, look, (_, decay), made in each(run):
        if decay == 0.0:
            with torch.no_grad():
                assert torch.equal(made(x), look.model(x)), what
            for name, layer in states.layers(look.model).items():
                for a, b in zip(
                    states.layers(made)[name].integer_weight(), layer.integer_weight(), strict=True
                ):
                    assert torch.equal(a, b), what


def test_ranges_of_copies_are_averages_of_ranges_that_were_set(run: dict[int, Look]) -> None:
    for what, look, _, made in each(run):
        for name, layer in states.layers(look.model).items():
            twin = states.layers(made)[name]
            for a, b in ((twin.input_range, layer.input_range), (twin.output_range,) * 2):
                assert torch.equal(a.isnan(), b.isnan()), what
            torch.testing.assert_close(
                twin.input_range, layer.input_range, rtol=0.1, atol=0.1, equal_nan=True
            )


def test_a_program_of_a_copy_computes_what_the_copy_does(run: dict[int, Look]) -> None:
    x = states.batch(200)[0]
    for what, look, (_, decay), made in each({k: v for k, v in run.items() if k >= 13}):
        if decay == 0.0:
            continue
        got = tops.compile(made, x)(x.numpy())
        for layer in states.layers(made).values():
            layer.fold_scales()  # one scale per filter, as programs have
        with torch.no_grad():
            want = made(x).numpy()
        # Folding the BatchNorm may move a few values by one of 256 codes.
        assert abs(got - want).max() <= 0.02 * np.ptp(want), what
        for name, layer in states.layers(look.model).items():
            if layer.config.weights == "ternary":
                program = states.layers(made)[name].integer_weight()[0]
                assert int((program == 0).sum()) == int((layer.codes == 0).sum()), what


def test_parameters_are_finite_before_ranges_are_set(run: dict[int, Look]) -> None:
    for what, look, _, made in each(run):
        for network in (look.model, made):
            penalty: Tensor = torch.stack([p.square().sum() for p in network.parameters()]).sum()
            assert bool(penalty.isfinite()), what
            assert all(bool(v.isfinite().all()) for v in network.state_dict().values()), what


def test_the_mean_of_everything_swa_with_buffers_can_be_taken() -> None:
    case = states.CASES["frozen"]
    model = states.network(case, pool=False)
    optimizer, pruner = states.parts(model, case)
    made, update = averaged(model, use_buffers=True)  # torch subtracts buffers: no bools then
    states.train(model, optimizer, pruner, range(states.STEPS), lambda step: update(model))
    for name, layer in states.layers(model).items():
        twin = states.layers(made)[name]
        assert twin.phase == "frozen" and torch.equal(twin.codes, layer.codes)
        assert torch.equal(twin.mask, layer.mask)

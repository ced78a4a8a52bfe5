# SPDX-License-Identifier: Apache-2.0
"""Semi-supervised super-resolution: the properties that its specification demands."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from semi_task import config, degrader, hidden, host, same, scene, small_of, state, streams

from ternary_ops import runtime, sr
from ternary_ops.errors import BadConfig, BadWeights, FormatError
from ternary_ops.sr import hosts
from ternary_ops.sr.semi.degrader import box_down, conserve
from ternary_ops.sr.semi.training import SemiTraining, ramp
from ternary_ops.train.checkpoint import Checkpoint

ALL = sr.SemiWeights(adversarial=1e-2, consistency=0.2, ramp=0.5, decay=0.9)
HOSTS = [hosts.SRGAN, hosts.ESRGAN]


def semi(kind: type[hosts.Host] = hosts.SRGAN, **changes: Any) -> sr.SemiSR:
    given: dict[str, Any] = {"weights": ALL, "streams": streams(), "degrader": degrader()}
    return sr.SemiSR(host(kind), **(given | changes))


@pytest.mark.parametrize("kind", HOSTS)
def test_without_extra_weights_it_is_the_host(kind: type[hosts.Host]) -> None:
    alone = host(kind)
    hosts.train(alone, streams().pairs, config())
    one = semi(kind, weights=sr.SemiWeights.off())
    before = state(one.degrader)
    one.train(config())
    assert same(state(alone.generator), state(one.generator))
    assert same(state(alone.discriminator), state(one.host.discriminator))
    assert same(before, state(one.degrader))
    other = semi(kind)
    other.train(config())
    assert not same(state(alone.generator), state(other.generator))


@pytest.mark.parametrize("kind", HOSTS)
def test_resumed_runs_have_the_same_bits(kind: type[hosts.Host], tmp_path: Path) -> None:
    whole = semi(kind)
    whole.train(config())
    file, about = tmp_path / "run.pt", {"run": 1}

    class Cut(Exception):
        pass

    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise Cut

    one = semi(kind)
    with pytest.raises(Cut):
        one.train(config(), checkpoint=Checkpoint(file, about, seconds=0), on_step=stop)
    again = semi(kind)
    again.train(config(), checkpoint=Checkpoint(file, about))
    for a, b in (
        (whole.generator, again.generator),
        (whole.host.discriminator, again.host.discriminator),
        (whole.degrader, again.degrader),
        (whole.discriminator_low, again.discriminator_low),
    ):
        assert a is not None and b is not None
        assert not same(state(a), state(one.generator)) and same(state(a), state(b))
    with pytest.raises(FormatError, match="checkpoint of the run"):
        semi(kind).train(config(), checkpoint=Checkpoint(file, {"run": 2}))


def training(weights: sr.SemiWeights = ALL, step: int = 5, **changes: Any) -> SemiTraining:
    """In the middle of a step: what G made is there, nobody has learned."""
    one = SemiTraining(semi(weights=weights, **changes), config())
    one.step = step
    one.batch = one.draw(step)
    one.made = one.generate()
    return one


def gradients(module: torch.nn.Module | None) -> list[float]:
    assert module is not None
    return [float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("term", ["cycle_low", "cycle_high"])
def test_cycles_change_the_generator_alone(term: str) -> None:
    one = training()
    getattr(one, term)().backward()
    assert gradients(one.semi.degrader) == []
    assert max(gradients(one.host.generator)) > 0
    assert all(p.requires_grad for p in one.semi.degrader.parameters())  # type: ignore[union-attr]


def test_adversarial_terms_leave_discriminators_and_learning_leaves_the_generator() -> None:
    one = training()
    one.loss().backward()
    assert gradients(one.host.discriminator) == gradients(one.semi.degrader) == []
    one = training()
    before = state(one.host.generator)
    one.teach()
    assert gradients(one.host.generator) == [] and same(before, state(one.host.generator))


TERMS = {
    "cycle_low": {"cycle_low"},
    "cycle_high": {"cycle_high"},
    "adversarial": {"adversarial_unpaired"},
    "consistency": {"consistency"},
    "identity": {"identity"},
}


@pytest.mark.parametrize("name", TERMS)
def test_weights_are_switches(name: str) -> None:
    step = 0 if name == "identity" else 5
    own = {"pixel", "perceptual"} | ({"adversarial"} if step else set())
    everything = training(step=step)
    assert TERMS[name] <= everything.terms().keys() >= own
    without = training(replace(ALL, **{name: 0.0}), step)
    assert without.terms().keys() == everything.terms().keys() - TERMS[name]
    only = training(replace(sr.SemiWeights.off(), **{name: 1.0}), step)
    assert only.terms().keys() == own | TERMS[name]
    # Halved weights halve the term.
    value = everything.terms()[next(iter(TERMS[name]))]
    half = training(replace(ALL, **{name: asdict(ALL)[name] / 2}), step)
    torch.testing.assert_close(half.terms()[next(iter(TERMS[name]))], value / 2)


def test_pseudo_pairs_alone_and_the_ramp() -> None:
    one = training(sr.SemiWeights.pseudo_pairs())
    assert one.terms().keys() == {"pixel", "perceptual", "adversarial", "cycle_high"}
    values = [ramp(step, 10) for step in range(15)]
    assert values == sorted(values) and values[0] < 0.01 and values[10:] == [1.0] * 5
    assert ramp(0, 0) == 1.0


def test_a_known_degradation_is_not_learned() -> None:
    one = semi(degrader=None, degradation=hidden)
    assert one.discriminator_low is None and one.weights.degradation == 0
    made = training(degrader=None, degradation=hidden)
    small = hidden(made.batch["high"])
    wanted = host().distances(made.host.generate(small), made.batch["high"])
    torch.testing.assert_close(made.cycle_high(), sum(wanted.values()))
    one.train(config())
    assert [p.name for p in made.players] == ["discriminator"]


def test_levels_leave_no_room_for_a_hidden_code() -> None:
    fine, coarse = training(), training(replace(ALL, levels=4))
    assert not torch.equal(fine.cycle_high(), coarse.cycle_high())
    seen: list[torch.Tensor] = []
    coarse.host.generator.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    coarse.cycle_high()
    torch.testing.assert_close(seen[-1] * 4, (seen[-1] * 4).round())


def test_the_degrader_learns_the_hidden_degradation() -> None:
    """On scenes held out, it is nearer than the block mean where it began."""
    one = semi(weights=replace(sr.SemiWeights.off(), degradation=1.0))
    test = torch.from_numpy(np.stack([scene(n) for n in range(300, 304)])).permute(0, 3, 1, 2)

    def off() -> float:
        with torch.no_grad():
            return float((one.degrade(test) - hidden(test)).abs().mean())

    before = off()
    assert before == pytest.approx(float((box_down(test, 2) - hidden(test)).abs().mean()))
    one.train(config(60, rate=1e-2, batch=4))
    assert off() < 0.7 * before


@pytest.mark.parametrize("term", ["pixel", "cycle_high", "degradation", "discriminator"])
def test_losses_that_are_not_finite_are_named(term: str) -> None:
    one = semi(weights=replace(ALL, adversarial_low=0.0))
    networks = {"degradation": one.degrader, "discriminator": one.host.discriminator}
    broken = networks.get(term, one.generator)
    assert broken is not None
    if term == "cycle_high":
        one.host.distances = lambda made, truth: {  # type: ignore[method-assign]
            "pixel": (made * 0 + (0 if len(made) == 3 else np.nan)).mean()
        }
    else:
        with torch.no_grad():
            next(broken.parameters()).fill_(float("nan"))
    before = state(one.generator)
    with pytest.raises(BadWeights, match=f"the term {term} at step"):
        one.train(config(batch=3, pixel_only=1.0 if term == "pixel" else 0.0))
    if term == "pixel":
        torch.testing.assert_close(before, state(one.generator), equal_nan=True)


def test_inference_is_the_generator_alone(tmp_path: Path) -> None:
    one = semi()
    names = one.generator.state_dict().keys()
    one.train(config())
    assert one.generator.state_dict().keys() == names and not one.generator.training
    program = sr.to_program(one.generator)
    plain = sr.to_program(host().generator.eval())
    assert [n.op for n in program.graph.nodes] == [n.op for n in plain.graph.nodes]
    program.save(tmp_path / "g.safetensors")
    plain.save(tmp_path / "plain.safetensors")
    sizes = [(tmp_path / name).stat().st_size for name in ("g.safetensors", "plain.safetensors")]
    assert abs(sizes[0] - sizes[1]) < 64
    x = small_of(scene(300))
    with torch.no_grad():
        wanted = one.generator(torch.from_numpy(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    made = sr.upscale(x, runtime.load(tmp_path / "g.safetensors"))
    np.testing.assert_allclose(made, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_fields_of_any_number_of_channels(channels: int) -> None:
    one = sr.SemiSR(
        host(channels=channels), degrader(channels), ALL, streams=streams(channels=channels)
    )
    one.train(config(3))
    assert sr.upscale(np.zeros((9, 8, channels), np.float32), one.generator).shape[2] == channels


def test_few_pairs_gain_from_images_without_a_partner() -> None:
    """Two pairs of 24 pixels: pseudo-pairs bring the test scenes nearer."""
    test = [scene(n) for n in range(300, 308)]
    errors = []
    for weights in (sr.SemiWeights.off(), sr.SemiWeights.pseudo_pairs()):
        weight = hosts.HostWeights(1.0, 0.0, 0.0)
        one = sr.SemiSR(host(weights=weight), degrader(), weights, streams=streams(pairs=1))
        one.train(config(80, rate=5e-3, batch=4))
        made = [sr.upscale(small_of(x), one.generator) for x in test]
        errors.append(
            float(np.mean([np.abs(a - b).mean() for a, b in zip(made, test, strict=True)]))
        )
    assert errors[1] < 0.9 * errors[0]


def test_conservation_is_exact() -> None:
    made, small = torch.rand(2, 3, 12, 8), torch.rand(2, 3, 3, 2)
    kept = conserve(made, small, 4)
    torch.testing.assert_close(box_down(kept, 4), small, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(conserve(kept, small, 4), kept)


def test_arguments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(BadConfig, match="degradation for cycles"):
        semi(degrader=None)
    with pytest.raises(BadConfig, match="known degradation"):
        semi(degradation=hidden)
    with pytest.raises(BadConfig, match="a stream low for cycle_low"):
        semi(streams=streams(low=None))
    with pytest.raises(BadConfig, match="a weight cycle_high"):
        replace(ALL, cycle_high=-1)
    with pytest.raises(BadConfig, match="pixel or perceptual"):
        hosts.HostWeights(0, 0, 1)
    with pytest.raises(BadConfig, match="pairs of scale 2, 2 channels"):
        hosts.train(host(channels=2), streams().pairs, config())
    low = sr.UnpairedPatches([small_of(scene(100))], 8, turned=False, ids=[100])
    with pytest.raises(BadConfig, match="to turn for consistency"):
        semi(streams=streams(low=low))

# SPDX-License-Identifier: Apache-2.0
"""The training loop: hooks for a GAN, for several streams and for tasks in sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, BadWeights
from ternary_ops.train.average import WeightAverage
from ternary_ops.train.checkpoint import Checkpoint, Stateful
from ternary_ops.train.loop import Hook, TrainLoop

STEPS = 12


class CutOff(Exception):
    pass


def network(outputs: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, outputs))


def noise(step: int, stream: int = 0) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * stream + step))


def loop(model: nn.Module, file: Path | None, stop: int | None, **options: Any) -> TrainLoop:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    count = 0

    def on_step() -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise CutOff

    checkpoint = None if file is None else Checkpoint(file, {"run": "test"}, seconds=0.0)
    return TrainLoop(
        model, optimizer, rate, STEPS, checkpoint=checkpoint, on_step=on_step, **options
    )


class Discriminator(Hook):
    """The other network of a GAN: a step of its own before each of the generator's."""

    def __init__(self) -> None:
        self.network = network(1, seed=5)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.05, momentum=0.9)

    def parts(self) -> Mapping[str, Stateful]:
        return {"discriminator": self.network, "discriminator_optimizer": self.optimizer}

    def before_step(self, loop: TrainLoop) -> None:
        real = noise(loop.done, 1).cumsum(1)
        with torch.no_grad():
            made = loop.model(noise(loop.done))
        self.optimizer.zero_grad()
        loss = F.softplus(-self.network(real)).mean() + F.softplus(self.network(made)).mean()
        loss.backward()
        self.optimizer.step()


def gan(file: Path | None, stop: int | None = None) -> list[Tensor]:
    model, other = network(6, seed=0), Discriminator()
    average = WeightAverage(model, 0.8)
    run = loop(model, file, stop, hooks=[other, average])
    run.run(noise, lambda generator, z: F.softplus(-other.network(generator(z))).mean())
    return [*model.state_dict().values(), *other.network.state_dict().values()]


@pytest.mark.parametrize("stop", [1, 7, STEPS - 1])
def test_a_gan_goes_on_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = gan(None)
    with pytest.raises(CutOff):
        gan(tmp_path / "c", stop)
    assert all(map(torch.equal, gan(tmp_path / "c"), whole))
    fresh = [*network(6, seed=0).state_dict().values(), *network(1, seed=5).state_dict().values()]
    assert not any(map(torch.equal, fresh, whole))


class Tasks(Hook):
    """Continual learning: a task for each third of the steps, the former network kept as anchor."""

    def __init__(self) -> None:
        self.task, self.seen, self.phases = 0, [0] * 3, ["float"]

    def before_step(self, loop: TrainLoop) -> None:
        self.task = 3 * loop.done // loop.steps

    def after_step(self, loop: TrainLoop) -> None:
        self.seen[self.task] += 1

    def on_phase(self, loop: TrainLoop, phase: str) -> None:
        self.phases.append(phase)
        assert loop.pruner is not None and loop.pruner.phase == phase


def test_tasks_in_sequence_and_several_streams_with_a_pruner() -> None:
    model = network(4, seed=1)
    tops.quantize_(model, tops.TernaryConfig(zeros=0.5, activations="float32"))
    tasks, steps = Tasks(), []
    run = loop(model, None, None, hooks=[tasks], bfloat16=True, clip=1.0)
    run.pruner = tops.prune.Pruner(model, total_steps=STEPS, optimizer=run.optimizer)

    def loss(net: nn.Module, streams: tuple[Tensor, Tensor]) -> Tensor:
        labelled, unlabelled = streams
        assert torch.is_autocast_enabled("cpu")
        first = F.cross_entropy(net(labelled).float(), torch.full((8,), tasks.task))
        return first + 0.1 * (net(unlabelled) - net(unlabelled + 0.01)).float().square().mean()

    def batches(step: int) -> tuple[Tensor, Tensor]:
        steps.append(step)
        return noise(step), noise(step, stream=2)

    run.run(batches, loss)
    assert steps == list(range(STEPS)) and tasks.seen == [4, 4, 4]
    assert tasks.phases == ["float", "ternary", "frozen"]
    assert run.done == STEPS and not model.training and run.pruner.zeros == pytest.approx(0.5, 0.1)


def test_what_cannot_be_is_refused() -> None:
    class Other(Hook):
        def parts(self) -> Mapping[str, Stateful]:
            return {"rate": network(1, 0)}

    with pytest.raises(BadConfig, match="names of Other's own"):
        loop(network(2, 0), None, None, hooks=[Other()]).run(noise, lambda net, x: net(x).mean())
    model = network(2, 0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(BadWeights, match="finite loss, got nan at step 1"):
        loop(model, None, None).run(noise, lambda net, x: net(x).mean() * float("nan"))
    assert all(map(torch.equal, before, model.parameters()))

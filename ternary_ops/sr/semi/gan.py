# SPDX-License-Identifier: Apache-2.0
"""Training of a host: the shared loop with a discriminator, which learns before each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.sr.semi.host import Host, total
from ternary_ops.sr.training.patches import PairedPatches
from ternary_ops.train.average import WeightAverage
from ternary_ops.train.checkpoint import Checkpoint, Stateful
from ternary_ops.train.loop import Hook, TrainLoop
from ternary_ops.train.rates import one_cycle

_RISE = 0.05  # share of the steps with a rising rate
Batch = dict[str, Tensor]  # "small" and "large", and what a subclass draws


@dataclass(frozen=True)
class GANTrainConfig:
    """Steps, peak learning rate and the rest of the training of generator and discriminator.

    pixel_only: share of the steps, at the start, without adversarial terms. average: decay of the
    exponential moving average of the generator's weights, with which training ends; 0 for none.
    clip: largest norm of the generator's gradient. bfloat16: as in train.config.TrainConfig.
    Adam's betas are 0.9 and 0.99 as in BasicSR, whose rate is halved at fixed steps; here it is
    one cosine cycle, like everywhere in this package.
    """

    steps: int
    rate: float = 1e-4
    batch: int = 8
    seed: int = 0
    pixel_only: float = 0.1
    average: float = 0.999
    clip: float = float("inf")
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.pixel_only <= 1:
            got = f"{self.steps}, {self.batch}, {self.pixel_only}"
            what = "steps and batch of at least 1, pixel_only in 0..1"
            raise BadConfig(need(what, got, "Correct it."))


class Player:
    """A network that learns beside the generator: its optimizer and its rate."""

    def __init__(self, name: str, network: nn.Module, config: GANTrainConfig) -> None:
        self.name, self.network = name, network
        self.optimizer = torch.optim.Adam(network.parameters(), config.rate, (0.9, 0.99))
        self.rate = one_cycle(self.optimizer, config.rate, config.steps, _RISE, momentum=False)

    def parts(self) -> dict[str, Stateful]:
        """State for checkpoints."""
        name = self.name
        return {name: self.network, f"{name}_optimizer": self.optimizer, f"{name}_rate": self.rate}

    def learn(self, terms: Mapping[str, Tensor], step: int) -> None:
        """One step down the sum of the terms."""
        loss = total(terms, step)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class GANTraining(Hook):
    """One training: draws batches, lets the discriminator learn, gives the generator its loss.

    Everything random is a function of seed and step. Subclasses add streams and terms.
    """

    def __init__(self, host: Host, pairs: PairedPatches, config: GANTrainConfig) -> None:
        self.host, self.pairs, self.config = host, pairs, config
        self.players = [Player("discriminator", host.discriminator, config)]
        self.batch: Batch = {}
        self.made: Batch = {}  # what the generator makes of small images, with gradient
        self.step = 0

    @property
    def adversarial(self) -> bool:
        """Whether adversarial terms count in this step."""
        return self.step >= self.config.pixel_only * self.config.steps

    def parts(self) -> Mapping[str, Stateful]:
        """Networks that learn beside the generator."""
        return {name: part for player in self.players for name, part in player.parts().items()}

    def on_start(self, loop: TrainLoop) -> None:
        """Into training mode."""
        for player in self.players:
            player.network.train()

    def before_step(self, loop: TrainLoop) -> None:
        """Run the generator, then let the others learn from what it made."""
        self.step = loop.done
        device = next(loop.model.parameters()).device
        batch = self.draw(self.step)
        self.batch = {name: images.to(device) for name, images in batch.items()}
        with self.autocast():
            self.made = self.generate()
        self.teach()

    def after_step(self, loop: TrainLoop) -> None:
        """Rates of the others, which begin when these begin to learn."""
        for player in self.players:
            if player.optimizer.state:
                player.rate.step()

    def on_end(self, loop: TrainLoop) -> None:
        """Into evaluation mode."""
        for player in self.players:
            player.network.eval()

    def draw(self, step: int) -> Batch:
        """The batch of a step."""
        config = self.config
        small, large = self.pairs.batch(step, config.batch, config.seed)
        return {"small": small, "large": large}

    def generate(self) -> Batch:
        """What the generator makes of the batch."""
        return {"small": self.host.generate(self.batch["small"])}

    def autocast(self) -> torch.autocast:
        """bfloat16 where the config wants it."""
        device = self.batch["small"].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.bfloat16)

    def teach(self) -> None:
        """Let the other networks learn from this batch."""
        if self.adversarial and self.host.weights.adversarial:
            self.teach_discriminator([self.made["small"]], [self.batch["large"]])

    def teach_discriminator(self, made: Sequence[Tensor], real: Sequence[Tensor]) -> None:
        """Show it images of both kinds."""
        player, judge = self.players[0], self.host.discriminator
        with self.autocast():
            scores = [judge(torch.cat([x.detach() for x in kind])).float() for kind in (made, real)]
            loss = self.host.discriminator_loss(*scores)
        player.learn({"discriminator": loss}, self.step)

    def terms(self) -> dict[str, Tensor]:
        """The generator's loss, by name."""
        made, large = self.made["small"], self.batch["large"]
        found = self.host.distances(made, large)
        weight = self.host.weights.adversarial
        if weight and self.adversarial:
            found["adversarial"] = weight * self.host.adversarial(made, large)
        return found

    def loss(self) -> Tensor:
        """The sum of the generator's terms."""
        return total(self.terms(), self.step)


def train(
    host: Host,
    pairs: PairedPatches,
    config: GANTrainConfig,
    *,
    checkpoint: Checkpoint | None = None,
    hooks: Sequence[Hook] = (),
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Train a host on pairs alone, in place; its generator ends in eval mode.

    hooks: of the training loop. on_step: called after each step. With a checkpoint a run that was
    cut off goes on with the same bits. Raises BadWeights, with the name of the term, when a loss is
    not finite, BadConfig for pairs of another scale or number of channels.
    """
    run(GANTraining(host, pairs, config), checkpoint, hooks, on_step)


def run(
    training: GANTraining,
    checkpoint: Checkpoint | None,
    hooks: Sequence[Hook],
    on_step: Callable[[], None],
) -> None:
    """Run a training in the shared loop."""
    host, pairs, config = training.host, training.pairs, training.config
    generator = host.generator
    if (pairs.scale, pairs.channels) != (generator.scale, generator.image_channels):
        got = f"scale {pairs.scale}, {pairs.channels} channels"
        what = f"pairs of scale {generator.scale}, {generator.image_channels} channels"
        raise BadConfig(need(what, got, "Pass others, or another generator."))
    optimizer = torch.optim.Adam(generator.parameters(), config.rate, (0.9, 0.99))
    everything: list[Hook] = [training, *hooks]
    if config.average:
        everything.append(WeightAverage(generator, config.average))
    loop = TrainLoop(
        *(generator, optimizer),
        one_cycle(optimizer, config.rate, config.steps, _RISE, momentum=False),
        config.steps,
        clip=config.clip,
        bfloat16=config.bfloat16,
        checkpoint=checkpoint,
        hooks=everything,
        on_step=on_step,
    )
    loop.run(lambda step: training.batch, lambda model, batch: training.loss())

# SPDX-License-Identifier: Apache-2.0
"""Training of SemiSR: the host's own, and terms of unpaired streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.sr.semi.degrader import box_down
from ternary_ops.sr.semi.gan import Batch, GANTrainConfig, GANTraining, Player
from ternary_ops.sr.semi.host import Host, frozen
from ternary_ops.sr.semi.streams import Streams
from ternary_ops.sr.semi.weights import SemiWeights
from ternary_ops.train.average import WeightAverage
from ternary_ops.train.checkpoint import Stateful
from ternary_ops.train.loop import TrainLoop

_LOW, _HIGH, _TURNS = 1, 2, 3  # streams of random numbers


class Setting(Protocol):
    """Networks, weights and streams of a training, as `SemiSR` holds them."""

    host: Host
    degrader: nn.Module | None
    discriminator_low: nn.Module | None
    weights: SemiWeights
    streams: Streams

    def degrade(self, large: Tensor) -> Tensor:
        """Small images of large ones."""


class SemiTraining(GANTraining):
    """One training of a SemiSR. With all weights 0 it draws, computes and learns as its base."""

    def __init__(self, semi: Setting, config: GANTrainConfig) -> None:
        super().__init__(semi.host, semi.streams.pairs, config)
        self.semi, self.weights = semi, semi.weights
        w = self.weights
        self._degrader: Player | None = None
        self._judge: Player | None = None
        if semi.degrader is not None and (w.degradation or w.adversarial_low):
            self._degrader = Player("degrader", semi.degrader, config)
            self.players.append(self._degrader)
        if semi.discriminator_low is not None and w.adversarial_low:
            self._judge = Player("discriminator_low", semi.discriminator_low, config)
            self.players.append(self._judge)
        self._teacher = WeightAverage(semi.host.generator, w.decay) if w.consistency else None

    def parts(self) -> Mapping[str, Stateful]:
        """The teacher too."""
        teacher = {} if self._teacher is None else {"teacher": self._teacher.average}
        return {**super().parts(), **teacher}

    def after_step(self, loop: TrainLoop) -> None:
        """The teacher follows."""
        super().after_step(loop)
        if self._teacher is not None:
            self._teacher.after_step(loop)

    def draw(self, step: int) -> Batch:
        """Small images "low" and large ones "high" where a term wants them."""
        batch, streams, w = super().draw(step), self.semi.streams, self.weights
        count, seed = streams.batch, self.config.seed
        if streams.low is not None and (w.cycle_low or w.adversarial or w.consistency):
            batch["low"] = streams.low.batch(step, count, seed, _LOW)
        if streams.high is not None and (
            w.cycle_high or w.adversarial or w.adversarial_low or w.identity
        ):
            batch["high"] = streams.high.batch(step, count, seed, _HIGH)
        return batch

    def generate(self) -> Batch:
        """Of unpaired small images too."""
        made, w = super().generate(), self.weights
        if w.cycle_low or (w.adversarial and self.adversarial):
            made["low"] = self.host.generate(self.batch["low"])
        return made

    def teach(self) -> None:
        """Discriminators, then the degrader."""
        if self.adversarial and self.weights.adversarial:
            made, real = self.made, self.batch
            self.teach_discriminator([made["small"], made["low"]], [real["large"], real["high"]])
        else:
            super().teach()
        if self._degrader is not None:
            self._teach_degrader(self._degrader)

    def _teach_degrader(self, player: Player) -> None:
        w, batch, terms = self.weights, self.batch, {}
        judge = self._judge if self.adversarial else None
        if judge is not None and w.adversarial_low:
            with self.autocast():
                made = self.semi.degrade(batch["high"])
                real = torch.cat([batch[name] for name in ("small", "low") if name in batch])
                scores = [judge.network(x).float() for x in (made.detach(), real)]
                loss = self.host.discriminator_loss(*scores)
            judge.learn({"discriminator_low": loss}, self.step)
            with self.autocast(), frozen(judge.network):
                scores = [judge.network(x).float() for x in (made, real)]
                value = self.host.generator_loss(*scores)
            terms["adversarial_low"] = w.adversarial_low * value
        if w.degradation:
            with self.autocast():
                off = self.semi.degrade(batch["large"]) - batch["small"]
            terms["degradation"] = w.degradation * off.abs().mean()
        if terms:
            player.learn(terms, self.step)

    def terms(self) -> dict[str, Tensor]:
        """The host's, then those of unpaired images."""
        found, w, batch, host = super().terms(), self.weights, self.batch, self.host
        if w.cycle_low:
            found["cycle_low"] = w.cycle_low * self.cycle_low()
        share = w.cycle_high * ramp(self.step, w.ramp * self.config.steps)
        if share:
            found["cycle_high"] = share * self.cycle_high()
        if w.adversarial and self.adversarial:
            value = host.adversarial(self.made["low"], batch["high"])
            found["adversarial_unpaired"] = w.adversarial * value
        if w.identity and not self.adversarial:
            large = batch["high"]
            made = host.generate(box_down(large, host.generator.scale))
            found["identity"] = w.identity * (made - large).abs().mean()
        if self._teacher is not None:
            found["consistency"] = w.consistency * self.consistency(self._teacher.average.module)
        return found

    def cycle_low(self) -> Tensor:
        """|F(G(u)) - u|, with gradient for G alone."""
        with frozen(*([] if self.semi.degrader is None else [self.semi.degrader])):
            back = self.semi.degrade(self.made["low"])
        return (back - self.batch["low"]).abs().mean()

    def cycle_high(self) -> Tensor:
        """The host's distances of G(F(v)) from v, with gradient for G alone."""
        large, levels = self.batch["high"], self.weights.levels
        with torch.no_grad():
            small = self.semi.degrade(large)
        if levels:
            small = torch.round(small * levels) / levels
        terms = self.host.distances(self.host.generate(small), large)
        return torch.stack(list(terms.values())).sum()

    def consistency(self, teacher: nn.Module) -> Tensor:
        """|G(turned u) - turned G'(u)|, all images of a batch turned alike."""
        rng = np.random.default_rng((self.config.seed, self.step, _TURNS))
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        low = self.batch["low"]
        with torch.no_grad():
            theirs = self.host.generate(low, teacher)
        return F.l1_loss(
            self.host.generate(turned(low, turns, mirrored)), turned(theirs, turns, mirrored)
        )


def ramp(step: int, length: float) -> float:
    """exp(-5 (1 - t)^2), t growing from 0 to 1 over so many steps (Laine and Aila 2017)."""
    t = min(1.0, step / length) if length > 0 else 1.0
    return math.exp(-5.0 * (1.0 - t) ** 2)


def turned(images: Tensor, turns: int, mirrored: bool) -> Tensor:
    """By quarter turns, after a mirror."""
    return torch.rot90(images.flip(-1) if mirrored else images, turns, (-2, -1))

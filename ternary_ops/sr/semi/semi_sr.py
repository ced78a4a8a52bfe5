# SPDX-License-Identifier: Apache-2.0
"""SemiSR: a supervised GAN that learns from few pairs and from images without a partner.

Semi-supervised super-resolution in the sense of the abstract of Singh and Rai (arXiv 2204.08192): a
module around any supervised GAN method, whose generator stays as it is. The paper's own losses,
weights and networks are not known here. Terms, weights and schedules are a design from the family
of cycles and pseudo-pairs (Maeda 2020, arXiv 2002.11397), not a reproduction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.sr.models.base import SRNetwork
from ternary_ops.sr.semi import gan
from ternary_ops.sr.semi.discriminators import PatchGAN
from ternary_ops.sr.semi.gan import GANTrainConfig
from ternary_ops.sr.semi.host import Host
from ternary_ops.sr.semi.streams import Streams
from ternary_ops.sr.semi.training import SemiTraining
from ternary_ops.sr.semi.weights import SemiWeights
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.loop import Hook


class SemiSR:
    """Trains a host's generator with pairs and unpaired images; inference is the generator alone.

    host: `sr.hosts.SRGAN`, `sr.hosts.ESRGAN` or another `sr.hosts.Host`. degrader: F, a network
    that makes small images of large ones, such as `sr.Degrader`; None where the degradation is a
    known function of a batch of large images, `degradation`: then nothing is learned about it.
    discriminator_low: of small images; by default a small `sr.hosts.PatchGAN`.

        semi = sr.SemiSR(host, sr.Degrader(4), streams=sr.Streams(pairs, low, high))
        semi.train(sr.hosts.GANTrainConfig(steps=20_000))
        program = sr.to_program(semi.generator)

    A step: discriminators learn, then F, then G. In cycles no gradient changes F, or both would
    agree on a code hidden in small images. With SemiWeights.off() every bit is that of
    `sr.hosts.train`.

    Raises BadConfig where a weight wants a stream or a degradation that is not given.
    """

    def __init__(
        self,
        host: Host,
        degrader: nn.Module | None,
        weights: SemiWeights | None = None,
        *,
        streams: Streams,
        degradation: Callable[[Tensor], Tensor] | None = None,
        discriminator_low: nn.Module | None = None,
    ) -> None:
        self.host, self.degrader, self.streams = host, degrader, streams
        self.weights = _resolved(SemiWeights() if weights is None else weights, host, degrader)
        self._function = degradation
        self._check()
        self.discriminator_low = discriminator_low
        if self.weights.adversarial_low and discriminator_low is None:
            self.discriminator_low = PatchGAN(host.generator.image_channels, 32, 1)

    @property
    def generator(self) -> SRNetwork:
        """All that inference needs."""
        return self.host.generator

    def degrade(self, large: Tensor) -> Tensor:
        """Small images of large ones, float32, by F or the known function."""
        if self.degrader is not None:
            made: Tensor = self.degrader(large)
            return made.float()
        if self._function is None:
            raise BadConfig(need("a degradation", "neither degrader nor degradation", _WAYS))
        return self._function(large)

    def train(
        self,
        config: GANTrainConfig,
        *,
        checkpoint: Checkpoint | None = None,
        hooks: Sequence[Hook] = (),
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Train in place; arguments and errors as of `sr.hosts.train`."""
        gan.run(SemiTraining(self, config), checkpoint, hooks, on_step)

    def _check(self) -> None:
        w, streams = self.weights, self.streams
        if self.degrader is not None and self._function is not None:
            do = "Pass degrader=None where the degradation is known."
            raise BadConfig(need("a degrader or a known degradation", "both", do))
        if (w.cycle_low or w.cycle_high) and self.degrader is None and self._function is None:
            raise BadConfig(need("a degradation for cycles", "none", _WAYS))
        wanted = {
            "low": ("cycle_low", "adversarial", "consistency"),
            "high": ("cycle_high", "adversarial", "adversarial_low", "identity"),
        }
        for stream, names in wanted.items():
            active = [name for name in names if asdict(w)[name]]
            if active and getattr(streams, stream) is None:
                do = "Pass the stream, or set these weights to 0."
                raise BadConfig(need(f"a stream {stream} for {', '.join(active)}", "none", do))
        if w.consistency and streams.low is not None and not streams.low.turned:
            do = "Set the weight to 0."
            got = "a stream that must not be turned"
            raise BadConfig(need("small images to turn for consistency", got, do))


_WAYS = "Pass a degrader, or the known function as degradation=."


def _resolved(weights: SemiWeights, host: Host, degrader: nn.Module | None) -> SemiWeights:
    """With numbers for None, and without terms that a known degradation has no use for."""
    w = asdict(weights)
    if w["adversarial"] is None:
        w["adversarial"] = host.weights.adversarial
    if w["adversarial_low"] is None:
        w["adversarial_low"] = w["adversarial"]
    if degrader is None:
        w["degradation"] = w["adversarial_low"] = 0.0
    return SemiWeights(**w)

# SPDX-License-Identifier: Apache-2.0
"""Host: a supervised GAN method, a generator with its discriminator and its own losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, BadWeights, need
from ternary_ops.sr.models.base import SRNetwork
from ternary_ops.sr.semi.discriminators import VGGDiscriminator
from ternary_ops.sr.training.losses import EdgeLoss


class Perceptual(Protocol):
    """A distance between two batches of images of one size."""

    def __call__(self, made: Tensor, truth: Tensor, /) -> Tensor:
        """A scalar."""


@dataclass(frozen=True)
class HostWeights:
    """Weights of a host's own terms; 0 leaves one out.

    BasicSR trains with 0.01, 1 and 0.005, where the perceptual term is an L1 distance of VGG19
    features. Its weights are not at hand: `EdgeLoss` stands in for it, which is so much smaller
    that L1 counts fully here.
    """

    pixel: float = 1.0
    perceptual: float = 1.0
    adversarial: float = 5e-3

    def __post_init__(self) -> None:
        check_weights(vars(self))
        if not (self.pixel or self.perceptual):
            do = "A GAN alone does not learn which image belongs to which."
            raise BadConfig(need("a weight for pixel or perceptual", "0 for both", do))


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise BadConfig for a weight below 0."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise BadConfig(need(f"a weight {name} >= 0", value, "0 leaves the term out."))


class Host:
    """A supervised GAN: what SemiSR extends. Subclasses say what the two networks play for.

    generator: any network of `sr`, which is all that inference needs. discriminator: gives logits
    for large images. perceptual: the distance weighted by weights.perceptual.
    """

    def __init__(
        self,
        generator: SRNetwork,
        discriminator: nn.Module | None = None,
        weights: HostWeights | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        """By default: a VGG-style discriminator of patches of 128 pixels, and `EdgeLoss`."""
        self.generator = generator
        if discriminator is None:
            discriminator = VGGDiscriminator(generator.image_channels)
        self.discriminator = discriminator
        self.weights = HostWeights() if weights is None else weights
        self.perceptual: Perceptual = EdgeLoss() if perceptual is None else perceptual

    def generate(self, small: Tensor, generator: nn.Module | None = None) -> Tensor:
        """Large images, float32, white is 1, of small ones; generator: in place of its own."""
        white = self.generator.input_range
        network = self.generator if generator is None else generator
        made: Tensor = network(small * white) / white
        return made.float()

    def distances(self, made: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """The terms that compare with the truth, weighted, by name."""
        weights, found = self.weights, {}
        if weights.pixel:
            found["pixel"] = weights.pixel * (made - truth).abs().mean()
        if weights.perceptual:
            found["perceptual"] = weights.perceptual * self.perceptual(made, truth)
        return found

    def adversarial(self, made: Tensor, real: Tensor) -> Tensor:
        """Loss by which the generator deceives the discriminator, which stays as it is."""
        with frozen(self.discriminator):
            with torch.no_grad():
                scores = self.discriminator(real).float()
            return self.generator_loss(self.discriminator(made).float(), scores)

    def generator_loss(self, made: Tensor, real: Tensor) -> Tensor:
        """The adversarial loss of the generator, from logits of what it made and of real images."""
        raise NotImplementedError

    def discriminator_loss(self, made: Tensor, real: Tensor) -> Tensor:
        """The loss of the discriminator, from logits."""
        raise NotImplementedError


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No gradient for the parameters of modules, while it still goes through them."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def total(terms: Mapping[str, Tensor], step: int) -> Tensor:
    """The sum of terms; raises BadWeights, naming the term, where one is not finite."""
    for name, value in terms.items():
        if not bool(value.isfinite()):
            got = f"{value.item()} in the term {name} at step {step + 1}"
            do = "Lower the rate or the term's weight, or look for NaN in data and weights."
            raise BadWeights(need("finite losses", got, do))
    return torch.stack(list(terms.values())).sum()

# SPDX-License-Identifier: Apache-2.0
"""Supervised GAN methods that train alone (`train`) or within `sr.SemiSR`: SRGAN and ESRGAN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ternary_ops.sr.semi.discriminators import PatchGAN, VGGDiscriminator
from ternary_ops.sr.semi.gan import GANTrainConfig, train
from ternary_ops.sr.semi.host import Host, HostWeights

__all__ = [
    "ESRGAN",
    "SRGAN",
    "GANTrainConfig",
    "Host",
    "HostWeights",
    "PatchGAN",
    "VGGDiscriminator",
    "train",
]


class SRGAN(Host):
    """Losses of SRGAN (Ledig et al. 2017) as BasicSR has it: the plain GAN loss on logits.

    The perceptual distance is `EdgeLoss`, variances of gradients and Laplacian, in place of VGG19
    features.
    """

    def generator_loss(self, made: Tensor, real: Tensor) -> Tensor:
        """Cross entropy of what was made against "real"."""
        return _is(made, 1.0)

    def discriminator_loss(self, made: Tensor, real: Tensor) -> Tensor:
        """Cross entropy of both against what they are."""
        return _is(real, 1.0) + _is(made, 0.0)


class ESRGAN(Host):
    """Losses of ESRGAN (Wang et al. 2018): the relativistic average GAN loss.

    A score counts by how far it lies above the mean score of the other kind. The perceptual
    distance is `EdgeLoss` in place of VGG19 features.
    """

    def generator_loss(self, made: Tensor, real: Tensor) -> Tensor:
        """What was made is to look more real than real images on average, and they less."""
        return (_is(made - real.mean(), 1.0) + _is(real - made.mean(), 0.0)) / 2

    def discriminator_loss(self, made: Tensor, real: Tensor) -> Tensor:
        """The reverse."""
        return (_is(real - made.mean(), 1.0) + _is(made - real.mean(), 0.0)) / 2


def _is(scores: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, scores.new_full(scores.shape, label))

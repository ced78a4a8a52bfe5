# SPDX-License-Identifier: Apache-2.0
"""Base of all super-resolution networks: an image in, one `scale` times as large out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedShape, need


class SRNetwork(nn.Module):
    """Base of the networks: x float [N, C, H, W] in 0..input_range -> [N, C, scale*H, scale*W].

    family       name of the architecture
    scale        factor of height and width
    image_channels  C: 3 for RGB, any number for fields of other kinds
    input_range  what white is: 1.0 or 255.0; checkpoints do not say it, the family does
    smallest     least height and width of x; `upscale` extends smaller images
    trunk        name of its list of blocks, whose outputs a teacher of equal shape can lead, if any
    ends         names of the first and last convolution, where x enters nothing but the first and y
                 comes from nothing but the last
    radius       input pixels that an output pixel can see to each side; None: the whole image
    """

    family: ClassVar[str]
    input_range: float
    smallest: ClassVar[int] = 1
    trunk: ClassVar[str] = ""
    ends: ClassVar[tuple[str, ...]] = ()
    scale: int
    image_channels: int

    def __init__(self, scale: int, image_channels: int = 3) -> None:
        super().__init__()
        self.scale = scale
        if not isinstance(image_channels, int) or image_channels < 1:
            do = "Pass 3 for RGB."
            raise BadConfig(need("image_channels of at least 1", image_channels, do))
        self.image_channels = image_channels
        self.register_forward_pre_hook(_check)

    @property
    def radius(self) -> int | None:
        """Half the receptive field, in pixels of the input."""
        return None


def _check(module: nn.Module, args: tuple[Any, ...]) -> None:
    x, network = args[0], module
    if not isinstance(network, SRNetwork) or not isinstance(x, Tensor):
        return
    fits = x.ndim == 4 and x.shape[1] == network.image_channels and x.is_floating_point()
    if not fits or min(x.shape[2:]) < network.smallest:
        shape, least = f"[N, {network.image_channels}, H, W]", network.smallest
        raise UnsupportedShape(
            need(
                f"float images {shape} for {network.family}, H and W at least {least}",
                f"{x.dtype} {list(x.shape)}",
                "Pass images to ternary_ops.sr.upscale, which converts and extends them.",
            )
        )


def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def shuffle_tail(inputs: int, scale: int, image_channels: int) -> nn.Sequential:
    """The last layer of all of them: scale**2 pixels a pixel, rearranged."""
    return nn.Sequential(conv(inputs, image_channels * scale * scale, 3), nn.PixelShuffle(scale))


def cat(*tensors: Tensor) -> Tensor:
    """Joined along channels."""
    return torch.cat(tensors, 1)

# SPDX-License-Identifier: Apache-2.0
"""Window arguments and padding of the inference convolutions, as torch.nn.Conv2d has them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# The arguments of torch.nn.Conv2d that it keeps as attributes.
GEOMETRY = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


def geometry_of(layer: nn.Module) -> dict[str, Any]:
    """The arguments that make a torch.nn.Conv2d of the sizes of this convolution."""
    return {name: getattr(layer, name) for name in GEOMETRY}


class ConvSizes(nn.Module):
    """The attributes that GEOMETRY names."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str

    def _take_sizes(self, twin: nn.Conv2d) -> None:
        for name, value in geometry_of(twin).items():
            setattr(self, name, value)


class ConvGeometry(ConvSizes):
    """A convolution's sizes, checked and completed by torch.nn.Conv2d."""

    def _set_geometry(self, **arguments: Any) -> None:
        self._arguments = arguments
        twin = self._twin()
        self._take_sizes(twin)
        left, right, top, bottom = twin._reversed_padding_repeated_twice
        self._inner_padding: tuple[int, int] = (top, left)
        self._edges: list[int] | None = None
        if twin.padding_mode != "zeros" or (left, top) != (right, bottom):
            # The kernels pad with zeros, evenly; anything else is padded before.
            self._inner_padding, self._edges = (0, 0), [left, right, top, bottom]

    def _twin(self) -> nn.Conv2d:
        return nn.Conv2d(**self._arguments, device="meta")

    def _pad(self, x: Tensor) -> Tensor:
        """Padding that the kernels cannot do: uneven, or of another mode than zeros."""
        if self._edges is None:
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded: Tensor = F.pad(x, self._edges, mode=mode)
        return padded

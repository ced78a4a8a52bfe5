# SPDX-License-Identifier: Apache-2.0
"""Window arguments and padding of the inference convolutions, as torch.nn.Conv2d has them."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

Edges: TypeAlias = tuple[int, int, int, int]
# Of a convolution: the same for every image, or "same", as TensorFlow pads.
Padding: TypeAlias = Edges | Literal["same"]

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


def edges_of(layer: nn.Module) -> Padding:
    """Padding of a convolution on the left, right, top and bottom; "same" where it depends on the
    size of the image.
    """
    own: Padding | None = getattr(layer, "edges", None)
    if own is None:
        twin = nn.Conv2d(**geometry_of(layer), device="meta")
        left, right, top, bottom = twin._reversed_padding_repeated_twice
        own = left, right, top, bottom
    return own


def edges_at(layer: nn.Module, height: int, width: int) -> Edges:
    """Padding of a convolution for images of one size. "same": as many pixels as make the result
    size / stride, rounded up; an odd one lies at the right and bottom.
    """
    own = edges_of(layer)
    if own != "same":
        return own
    m: Any = layer
    top, bottom, left, right = (
        side
        for size, kernel, stride, dilation in zip(
            (height, width), m.kernel_size, m.stride, m.dilation, strict=True
        )
        for side in _same(size, dilation * (kernel - 1) + 1, stride)
    )
    return left, right, top, bottom


def _same(size: int, span: int, stride: int) -> tuple[int, int]:
    """Pixels before and after an axis; span: of the filter."""
    missing = max((-(-size // stride) - 1) * stride + span - size, 0)
    return missing // 2, missing - missing // 2


class PaddedConv2d(nn.Conv2d):
    """torch.nn.Conv2d with zeros around the image that may differ from side to side: `edges`, left,
    right, top and bottom, or "same" (`edges_at`), in place of `padding`.
    """

    def __init__(self, *args: Any, edges: Padding, **options: Any) -> None:
        super().__init__(*args, **{**options, "padding": 0})
        self.edges = edges

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as the base class names it
        """[N, C, H, W] -> [N, O, Ho, Wo]."""
        return super().forward(F.pad(input, edges_at(self, *input.shape[-2:])))

    def extra_repr(self) -> str:
        """As torch.nn.Conv2d, then the edges."""
        return f"{super().extra_repr()}, edges={self.edges}"  # type: ignore[no-untyped-call]


class ConvSizes(nn.Module):
    """The attributes that GEOMETRY names, and padding on the left, right, top and bottom, or
    "same".
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    edges: Padding

    def _take_sizes(self, twin: nn.Conv2d) -> None:
        for name, value in geometry_of(twin).items():
            setattr(self, name, value)
        self.edges = edges_of(twin)

    def _float_twin(self, **options: Any) -> nn.Conv2d:
        """A float convolution of these sizes, without weights."""
        sizes = {**geometry_of(self), **options, "device": "meta"}
        plain = nn.Conv2d(**sizes)
        return plain if edges_of(plain) == self.edges else PaddedConv2d(**sizes, edges=self.edges)

    def _even_padding(self) -> tuple[int, int] | None:
        """Zeros above and below, and beside; None where the sides differ or other padding is asked
        for.
        """
        if self.edges == "same":
            return None
        left, right, top, bottom = self.edges
        even = self.padding_mode == "zeros" and (left, top) == (right, bottom)
        return (top, left) if even else None

    def _with_edges(self, x: Tensor) -> Tensor:
        """The image with its padding."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, edges_at(self, *x.shape[-2:]), mode=mode)


class ConvGeometry(ConvSizes):
    """A convolution's sizes, checked and completed by torch.nn.Conv2d."""

    def _set_geometry(self, edges: Padding | None = None, **arguments: Any) -> None:
        """edges: in place of the padding that the arguments say."""
        self._bias = arguments.pop("bias")
        self._take_sizes(nn.Conv2d(**arguments, bias=self._bias, device="meta"))
        self.edges = self.edges if edges is None else edges
        # The kernels pad with zeros, evenly; anything else is padded before.
        self._inner_padding = self._even_padding() or (0, 0)

    def _twin(self) -> nn.Conv2d:
        return self._float_twin(bias=self._bias)

    def _pad(self, x: Tensor) -> Tensor:
        """Padding that the kernels cannot do: uneven, or of another mode than zeros."""
        return x if self._even_padding() else self._with_edges(x)

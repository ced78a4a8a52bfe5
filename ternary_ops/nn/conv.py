# SPDX-License-Identifier: Apache-2.0
"""TernaryConv2d: the trainable, fake-quantized twin of torch.nn.Conv2d."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedShape, check_type, need
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.geometry import ConvSizes, edges_at, edges_of, geometry_of
from ternary_ops.nn.ternary import TernaryLayer


class TernaryConv2d(ConvSizes, TernaryLayer):
    """Convolution with codes * scale; x [N, C, H, W] or [C, H, W] of any float dtype.

    The arguments of torch.nn.Conv2d, then `config`. State and phases: TernaryLayer. Zero padding
    adds nothing to the sums; the other padding modes pad the quantized input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: Any = None,
        config: TernaryConfig = TernaryConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        twin = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._take_sizes(twin)
        self._adopt(twin.weight, twin.bias, config)

    @classmethod
    def from_float(cls, m: nn.Conv2d, config: TernaryConfig = TernaryConfig()) -> TernaryConv2d:  # noqa: B008
        """The layer that takes over m's parameters (the same objects, not copies), and the edges of
        a `geometry.PaddedConv2d`.
        """
        check_type("the layer", m, nn.Conv2d, "Pass the torch.nn.Conv2d to take over.")
        layer = cls(**geometry_of(m), bias=m.bias is not None, device="meta", config=config)
        layer.edges = edges_of(m)
        layer._adopt(m.weight, m.bias, config)
        return layer.train(m.training)

    def to_float(self) -> nn.Conv2d:
        """A torch.nn.Conv2d that computes with this layer's weights; the input stays float."""
        twin = self._twin()
        twin.weight = self._float_weight()
        twin.register_parameter("bias", self._float_bias())
        return twin.train(self.training)

    def _twin(self) -> nn.Conv2d:
        return self._float_twin(bias=self.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, O, Ho, Wo] in the dtype torch.nn.Conv2d would return."""
        return self._forward(x)

    def _accumulate(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self._even_padding()
        if padding is None:
            x, padding = self._with_edges(x), (0, 0)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def _per_output(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)

    def _check_input(self, x: Tensor) -> None:
        self._check_dtype(x)
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise UnsupportedShape(
                need(
                    f"an input [N, {self.in_channels}, H, W] of TernaryConv2d",
                    list(x.shape),
                    "Check what comes before it.",
                )
            )
        if torch.compiler.is_compiling():
            return  # a test of H and W would pin them
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        left, right, top, bottom = edges_at(self, *x.shape[-2:])
        sizes = [x.shape[-2] + top + bottom, x.shape[-1] + left + right]
        if any(size < span for size, span in zip(sizes, spans, strict=True)):
            raise UnsupportedShape(
                need(
                    f"at least the {spans} pixels that a filter spans",
                    f"{sizes} with padding",
                    "Pad more, or use a larger image.",
                )
            )

    def extra_repr(self) -> str:
        """As torch.nn.Conv2d, then the quantization."""
        twin = self._twin().extra_repr()  # type: ignore[no-untyped-call]
        return f"{twin}, {super().extra_repr()}"

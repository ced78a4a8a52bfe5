# SPDX-License-Identifier: Apache-2.0
"""TernaryLinear: the trainable, fake-quantized twin of torch.nn.Linear."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedShape, check_type, need
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.ternary import TernaryLayer


class TernaryLinear(TernaryLayer):
    """y = x @ (codes * scale).T + bias; x [..., K] of any float dtype -> y [..., N].

    The arguments of torch.nn.Linear, then `config`. State and phases: TernaryLayer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        config: TernaryConfig = TernaryConfig(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        twin = nn.Linear(in_features, out_features, bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self._adopt(twin.weight, twin.bias, config)

    @classmethod
    def from_float(cls, m: nn.Linear, config: TernaryConfig = TernaryConfig()) -> TernaryLinear:  # noqa: B008
        """The layer that takes over m's parameters (the same objects, not copies)."""
        check_type("the layer", m, nn.Linear, "Pass the torch.nn.Linear to take over.")
        layer = cls(m.in_features, m.out_features, m.bias is not None, "meta", config=config)
        layer._adopt(m.weight, m.bias, config)
        return layer.train(m.training)

    def to_float(self) -> nn.Linear:
        """A torch.nn.Linear that computes with this layer's weights; the input stays float."""
        twin = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        twin.weight = self._float_weight()
        twin.register_parameter("bias", self._float_bias())
        return twin.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in the dtype torch.nn.Linear would return."""
        return self._forward(x)

    def _accumulate(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def _per_output(self, values: Tensor) -> Tensor:
        return values

    def _check_input(self, x: Tensor) -> None:
        self._check_dtype(x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise UnsupportedShape(
                need(
                    f"an input [..., {self.in_features}] of TernaryLinear",
                    list(x.shape),
                    "Check what comes before it.",
                )
            )

    def extra_repr(self) -> str:
        """As torch.nn.Linear, then the quantization."""
        bias = self.bias is not None
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, "
            + super().extra_repr()
        )

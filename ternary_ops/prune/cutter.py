# SPDX-License-Identifier: Apache-2.0
"""What is left of tensors whose channels go."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cutter:
    """Which positions along the axes of a tensor stay: for each axis a bool mask, and the parts of
    a grouped convolution's inputs (see Place).
    """

    axes: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def drop(self, size: int, axis: int, parts: int, positions: Tensor) -> None:
        """Without these positions along an axis of this size."""
        mask, _ = self.axes.setdefault(axis, (torch.ones(size * parts, dtype=torch.bool), parts))
        mask[positions] = False

    def __call__(self, tensor: Tensor) -> Tensor:
        """What is left of a tensor of the shape that the cutter is for, in memory of its own."""
        for axis, (mask, parts) in self.axes.items():
            left = mask.to(tensor.device)
            if parts == 1:
                tensor = tensor.index_select(axis, left.nonzero().flatten())
                continue
            rows = tensor.view(parts, -1, *tensor.shape[1:])
            chosen = [
                part.index_select(1, here.nonzero().flatten())
                for part, here in zip(rows, left.view(parts, -1), strict=True)
            ]
            tensor = torch.cat(chosen)
        return tensor

    def inputs(self, values: Tensor) -> Tensor:
        """What is left of numbers [I], one an input channel."""
        mask = self.axes[1][0].to(values.device) if 1 in self.axes else None
        return values if mask is None else values[mask]

# SPDX-License-Identifier: Apache-2.0
"""The numbers by which a trainable layer remembers what happened to it: see nn._state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PHASES = ("float", "ternary", "frozen")
# Added to codes of each kind of weights, so that all are positive.
OFFSET = {"ternary": 2.0, "int8": 128.0}
# Marks of a layer that is not frozen lie far below those of frozen ones, which must hide them;
# float16, in which some keep states, still holds this.
PRUNED = 2.0**-24


def make(mask: Tensor, codes: Tensor | None, offset: float, came_back: Tensor) -> Tensor:
    """Marks, float32, of a bool mask and, if the layer is frozen, its codes.

    came_back: bool, where a weight that is not pruned now was pruned before; for unfrozen layers.
    """
    if codes is not None:
        size = codes.to(device=mask.device, dtype=torch.float32) + offset
        return torch.where(mask, -size, size)
    return torch.where(mask, came_back * -PRUNED, PRUNED)


def phase_values(phase: str, offset: float) -> list[float]:
    """Values of `phase_code` in a phase."""
    reached = PHASES.index(phase)
    return [1.0, float(reached > 0), float(reached > 1), offset]


def phase_of(values: Sequence[float]) -> str:
    """The phase that `phase_code`, or an average of it, tells."""
    real, ternary, frozen, _ = values
    return "frozen" if frozen > 0 else "ternary" if ternary > 0 or not real > 0 else "float"


def set_base(base: Tensor, bounds: Tensor | Sequence[float] | None) -> None:
    """Write 1, lo and hi; zeros for None and for what is not finite."""
    values = torch.tensor([]) if bounds is None else torch.as_tensor(bounds).detach()
    if values.numel() and not values.is_meta and bool(values.isfinite().all()):
        base[0] = 1.0
        base[1:] = values
    else:
        base.zero_()

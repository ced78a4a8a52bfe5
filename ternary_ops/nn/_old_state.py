# SPDX-License-Identifier: Apache-2.0
"""States of trainable layers of earlier versions: of commit cf631c5, when masks, codes and phases
were integers and NaN in a range meant that it was not set, and those with former names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ternary_ops.nn import _marks

_INTEGERS = ("mask", "codes", "phase_code")
_RANGES = ("input_range", "output_range")
_RENAMED = {"poles": "ttq_scales"}


def rename(state: dict[str, Any], prefix: str) -> None:
    """Give what had another name its name of today, in the same order."""
    new = {prefix + old: prefix + name for old, name in _RENAMED.items()}
    if not new.keys().isdisjoint(state):
        items = [(new.get(key, key), value) for key, value in state.items()]
        state.clear()
        state.update(items)


def take_old(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    """Remove an old state from a state dict and return it; None where there is none of that form.

    The integers are of use together: parts of them are left for torch to report.
    """
    found = [name for name in _RANGES if prefix + name in state]
    if all(prefix + name in state for name in _INTEGERS):
        found += _INTEGERS
    return {name: state.pop(prefix + name) for name in found} or None


@torch.no_grad()
def renewed(old: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """The state of today that says the same, for a layer of "ternary" or "int8" weights."""
    new: dict[str, Tensor] = {}
    if "mask" in old:
        code, mask = old["phase_code"], old["mask"]
        # A new layer is "ternary" without having been "float": an average may start from either.
        phase = "" if code.is_meta else ("float", "", "frozen")[int(code)]
        offset = _marks.OFFSET[weights] if phase == "frozen" else 0.0
        codes = old["codes"] if phase == "frozen" else None
        new["marks"] = _marks.make(mask, codes, offset, torch.zeros_like(mask))
        values = _marks.phase_values(phase, offset) if phase else [0.0] * 4
        new["phase_code"] = torch.tensor(values, device=mask.device)
    for name in _RANGES:
        if name in old:
            bounds = old[name].detach()
            side = name.removesuffix("_range")
            new[f"{side}_base"] = torch.zeros(3, dtype=torch.float32, device=bounds.device)
            _marks.set_base(new[f"{side}_base"], bounds)
            if side == "input":
                new["input_shift"] = torch.zeros_like(bounds)
    return new

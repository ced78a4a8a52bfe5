# SPDX-License-Identifier: Apache-2.0
"""Masks written into a copy of a network, such as an average of its weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.prune.targets import Target


def mask_copy(targets: Sequence[Target], copied: nn.Module) -> None:
    """Write exact zeros into `copied` where the targets are pruned.

    Raises UnsupportedModel, with nothing changed, where a target has no counterpart of its name
    and shape.
    """
    found: dict[str, nn.Parameter] = {}
    for target in targets:
        layer = dict(copied.named_modules()).get(target.name)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.shape != target.weight.shape:
            what = f"a copy of the network with a weight {target.name!r}"
            got = "none" if weight is None else list(weight.shape)
            do = "Pass the module itself, such as AveragedModel(...).module."
            raise UnsupportedModel(need(f"{what} {list(target.weight.shape)}", got, do))
        found[target.name] = weight
    for target in targets:
        weight = found[target.name]
        weight.masked_fill_(~target.mask.to(weight.device), 0.0)

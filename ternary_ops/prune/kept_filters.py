# SPDX-License-Identifier: Apache-2.0
"""The channels that a caller keeps: checked, and rounded to widths that every operator takes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.prune.filter_network import FilterNetwork
from ternary_ops.prune.filters import FilterGroup


def settle(network: FilterNetwork, kept: Mapping[str, Any], round_to: int) -> dict[str, Tensor]:
    """For each group that `kept` names the indices to keep, ascending; see `remove_`.

    Raises BadConfig for what is no choice of channels, UnsupportedModel for groups that are fixed.
    """
    check_type("kept", kept, Mapping, "Pass {group's name: indices or a bool mask}.")
    if round_to < 1:
        raise BadConfig(need("round_to of at least 1", round_to, "4 suits the engine."))
    known = {group.name: group for group in network.groups}
    found = {}
    for name, choice in kept.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or list(known)[:3]
            what = f"names of filter groups, such as {', '.join(near)}"
            raise BadConfig(need(what, repr(name), "prune.groups(model, example) lists them."))
        index = _indices(known[name], choice)
        if len(index) < known[name].width:
            _check_free(known[name])
            index = _rounded(network, known[name], index, round_to)
        found[name] = index
    return found


def _check_free(group: FilterGroup) -> None:
    if group.fixed is not None:
        do = "Leave this group out of kept."
        raise UnsupportedModel(
            need(f"a group whose channels can go: {group.name}", group.fixed, do)
        )


def _indices(group: FilterGroup, choice: Any) -> Tensor:
    """The channels chosen, ascending."""
    what = f"channels of {group.name!r}: indices in 0..{group.width - 1} or a mask [{group.width}]"
    do = "Name each channel to keep once."
    try:
        chosen = torch.as_tensor(choice).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadConfig(need(what, f"{choice!r:.80}", do)) from error
    if chosen.dtype == torch.bool and chosen.shape == (group.width,):
        chosen = chosen.nonzero().flatten()
    if chosen.numel() == 0:
        raise BadConfig(need(f"at least one channel to keep in {group.name!r}", "none", do))
    whole = not chosen.dtype.is_floating_point and chosen.dtype != torch.bool
    if not whole or chosen.dtype.is_complex or chosen.ndim != 1:
        raise BadConfig(need(what, f"{list(chosen.shape)} of {chosen.dtype}", do))
    chosen = chosen.long().sort().values
    if int(chosen[0]) < 0 or int(chosen[-1]) >= group.width:
        outside = chosen[(chosen < 0) | (chosen >= group.width)]
        raise BadConfig(need(what, f"{outside[:3].tolist()}", do))
    if bool((chosen.diff() == 0).any()):
        again = sorted(set(chosen[1:][chosen.diff() == 0].tolist()))
        raise BadConfig(need(what, f"{again[:3]} more than once", do))
    return chosen


def _rounded(network: FilterNetwork, group: FilterGroup, index: Tensor, round_to: int) -> Tensor:
    """With the strongest of the other channels, so that each part keeps as many, and the width is
    a multiple.
    """
    labels = torch.from_numpy(group.labels)
    full = group.width // group.parts
    each = int(torch.bincount(labels[index], minlength=group.parts).max())
    while each < full and each * group.parts % round_to:
        each += 1
    if each == full:
        return torch.arange(group.width)
    rank = network.norms(group)
    rank[index] = torch.inf
    order = rank.argsort(descending=True, stable=True)
    chosen = [order[labels[order] == part][:each] for part in range(group.parts)]
    return torch.cat(chosen).sort().values

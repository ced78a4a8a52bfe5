# SPDX-License-Identifier: Apache-2.0
"""Check that a plan was carried out: pruning is finished and the sparsity is reached."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import ternary_ops.nn as tnn
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.nn.patterns import from_mask, get_pattern

_log = logging.getLogger(__name__)
_SHOWN = 5
_MISSING = 0.01  # zeros may miss their target by units that every layer or filter keeps


def check_finished(layers: Mapping[str, tnn.TernaryLayer], allow: bool) -> None:
    """Raise UnsupportedModel, unless allowed, where masks and codes are not final.

    That is so while the layers' Pruner has not reached its freeze and, where zeros are planned, in
    phase "float", as in a checkpoint from the middle of pruning. Where none are planned, that phase
    only gives a warning: codes differ from the real weights that the layer computes with.
    """
    moving = {n: m for n, m in layers.items() if m.phase != "frozen"}
    led = {n: m for n, m in moving.items() if m.pruning is not None and not m.pruning.finished}
    real = [n for n, m in moving.items() if m.phase == "float"]
    if allow or not (led or real):
        return
    got = f'real weights (phase "float") in {listed(real)}'
    if led:
        got = f"a Pruner at {next(iter(led.values())).pruning} for {listed(list(led))}"
    elif not any(layers[name].config.zeros > 0 for name in real):
        _log.warning("codes are taken of what computes with %s", got)
        return
    raise UnsupportedModel(
        need(
            "finished pruning before the codes count",
            got,
            "Train on to the Pruner's freeze, or pass allow_unfinished=True for the codes of now.",
        )
    )


def warn_of_zeros(layers: Mapping[str, tnn.TernaryLayer]) -> None:
    """Log a warning that names the layers whose plan asks for more zeros than they have: units that
    are pruned, or whose weights are all exactly 0.0, as those of a network pruned before.
    """
    groups: dict[tuple[str, float], list[str]] = {}
    for name, layer in layers.items():
        if layer.config.zeros > 0:
            groups.setdefault((layer.config.pattern, layer.config.zeros), []).append(name)
    for (pattern, zeros), names in groups.items():
        left = [(m := layers[name]).mask & (m.weight.detach() != 0) for name in names]
        kept = [from_mask(part, get_pattern(pattern)) for part in left]
        units = sum(part.numel() for part in kept)
        share = 1 - sum(int(part.sum()) for part in kept) / max(units, 1)
        if share < zeros - _MISSING:
            led = [p for name in names if (p := layers[name].pruning) is not None]
            why = "the Pruner was asked for fewer" if led else "no Pruner was attached"
            if not all(progress.finished for progress in led):
                why = "the Pruner has not finished"
            _log.warning(
                "zeros: planned %.1f %% of units %s, pruned %.1f %% (%s) in %s",
                *(100 * zeros, pattern, 100 * share, why, listed(names)),
            )


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

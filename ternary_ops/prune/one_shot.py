# SPDX-License-Identifier: Apache-2.0
"""What pruning a trained network at one stroke begins with: its targets, and phase "float"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.graph.state import load_state
from ternary_ops.prune.targets import Target, find_targets, is_quantized


def row_targets(
    model: nn.Module,
    zeros: float | Mapping[str, float] | None,
    pattern: str | None,
    scope: str | None,
    skip: str | Sequence[str],
) -> list[Target]:
    """Targets whose units lie in one output channel each; BadConfig for others."""
    targets = find_targets(model, zeros, pattern, scope, skip, None)
    for target in targets:
        if target.pattern.rows != 1 or target.pattern.cols == 0 or target.pattern.stride:
            do = 'Pass "1x4" or "element", or prune with a Pruner.'
            got = f"{target.pattern.name!r} for {target.name!r}"
            raise BadConfig(need("units to refit that lie in one output channel", got, do))
    return targets


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Quantized layers in phase "float", the model in eval mode; after an error all as before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [m for m in model.modules() if is_quantized(m)]
    phases, training = [layer.kept_phase() for layer in layers], model.training
    model.eval()
    try:
        for layer in layers:
            layer.phase = "float"
        yield
    except BaseException:
        load_state(model, before)
        raise
    finally:
        for restore in phases:
            restore()
        model.train(training)

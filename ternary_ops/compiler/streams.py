# SPDX-License-Identifier: Apache-2.0
"""Residual streams: sums that read sums, one for each block of a network.

Rounding a stream at every sum adds up: each sum rounds all that came before it once more, and the
noise of the last one is that of as many roundings as there are blocks. A long stream stays float,
and convolutions round what they read of it. A stream that a ReLU cuts at every sum, as in a ResNet,
keeps codes: its values are positive, use all of them, and floats would cost time for next to
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ternary_ops.compiler.step import Step
from ternary_ops.program.ops import OPS

LONG = 5  # sums in a row; shorter streams lose about a decibel


def long_sums(steps: Sequence[Step]) -> list[Step]:
    """The sums of every residual stream that has at least LONG of them without a clamp."""
    before: dict[Step, int] = {}
    for step in steps:
        count = max((before.get(x, 0) for x in _parts(step)), default=0) + _adds(step)
        if count and step.clamp == (None, None):
            before[step] = count
    after: dict[Step, int] = {}
    for step in reversed(steps):
        if step in before:
            later = (after.get(user, 0) for user in step.users if step in _parts(user))
            after[step] = max(later, default=0) + _adds(step)
    return [s for s in before if _adds(s) and before[s] + after[s] - 1 >= LONG]


def _adds(step: Step) -> bool:
    fused = step.layer is not None
    return step.op == "add" or (fused and len(step.inputs) > 1 + bool(step.attrs.get("gate")))


def _parts(step: Step) -> list[Step]:
    """The operands whose sum, or whose value at other places, a step makes."""
    if step.op == "output" or not (_adds(step) or OPS[step.op].rearranges):
        return []
    return step.inputs if step.layer is None else step.inputs[1 + bool(step.attrs.get("gate")) :]

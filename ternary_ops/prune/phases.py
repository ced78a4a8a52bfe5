# SPDX-License-Identifier: Apache-2.0
"""Phases: the optimizer steps at which a Pruner updates masks and changes phase."""

from __future__ import annotations

from ternary_ops.errors import BadConfig, check_type, need

# A ranking can cost as much as a small network's whole step; 200 of them follow a curve closely.
_UPDATES = 200


class Phases:
    """Steps of a run of `total`: float up to `ternary`, masks complete at `end`, fixed at `freeze`.

    every: steps between updates of the masks. start: where the schedule begins, as a fraction of
    the steps; None: at its own default_start.
    """

    def __init__(
        self,
        total_steps: int | None,
        ternary_at: float,
        freeze_at: float,
        start: float | None,
        end: float | None,
        every: int | None,
        default_start: float,
    ) -> None:
        """Round fractions of total_steps to steps; BadConfig for bad counts and fractions."""
        self.total = _check_count("total_steps", total_steps)
        times = {"ternary_at": ternary_at, "freeze_at": freeze_at, "start": start, "end": end}
        for name, value in times.items():
            if value is not None:
                check_type(name, value, (int, float), "Pass a fraction of total_steps.")
        _check_times(ternary_at, freeze_at, default_start if start is None else start, end)
        self.start = start
        self.freeze = max(1, round(freeze_at * self.total))
        self.ternary = min(round(ternary_at * self.total), self.freeze)
        end_step = self.freeze if end is None else max(1, round(end * self.total))
        self.end = min(end_step, self.freeze)
        default_every = -(-self.end // _UPDATES)
        self.every = default_every if every is None else _check_count("every", every)

    def updates(self, step: int) -> bool:
        """True at steps that update the masks."""
        if step in (self.end, self.freeze):
            return True
        return step < self.freeze and step % self.every == 0

    def at(self, step: int, quantized: bool) -> str:
        """ "float", "ternary" or "frozen"; a plain model is never "ternary"."""
        if step >= self.freeze:
            return "frozen"
        return "ternary" if quantized and step >= self.ternary else "float"


def _check_times(ternary_at: float, freeze_at: float, start: float, end: float | None) -> None:
    """Raise BadConfig unless the shares are in order."""
    last = freeze_at if end is None else end
    if 0.0 <= ternary_at <= freeze_at <= 1.0 and 0.0 <= start < last <= freeze_at:
        return
    raise BadConfig(
        need(
            "0 <= ternary_at <= freeze_at <= 1 and 0 <= start < end <= freeze_at",
            f"ternary_at={ternary_at}, freeze_at={freeze_at}, start={start}, end={last}",
            "Codes are fixed at freeze_at, so the zeros must be complete by then.",
        )
    )


def _check_count(name: str, value: int | None) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise BadConfig(need(f"{name} as an integer >= 1", repr(value), "Count optimizer steps."))

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: training can be cut off at any moment and goes on with the same bits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ternary_ops._atomic import replace_file
from ternary_ops.errors import FormatError, need

# Names that earlier versions gave to parts.
_FORMER = {"network": "model"}


class Stateful(Protocol):
    """A module, an optimizer, a scheduler, a Pruner."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""

    def load_state_dict(self, state: Any, /) -> Any:
        """The inverse."""


class Checkpoint:
    """One file with the state of several parts, rewritten at most every `seconds`.

    about: what the run is (plain values); a file of another run is refused. Read with torch's
    loader for weights alone: nothing in it is executed.
    """

    def __init__(self, file: Path, about: Mapping[str, Any], seconds: float = 180.0) -> None:
        self.file, self.about, self.seconds = file, dict(about), seconds
        self._last = time.monotonic()

    def load(self, parts: Mapping[str, Stateful]) -> int:
        """Restore the parts in order; steps done, 0 where there is no file.

        Raises FormatError, with nothing changed, for a file that is none or is of another run.
        """
        if not self.file.exists():
            return 0
        try:
            state = torch.load(self.file, weights_only=True)
            found, step, states = state["about"], int(state["step"]), state["parts"]
        except Exception as error:  # torch raises many kinds for a broken file
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise FormatError(need(f"a checkpoint in {self.file}", reason, "Delete it.")) from error
        if set(states) != set(parts):
            states = {_FORMER.get(name, name): state for name, state in states.items()}
        if found != self.about or set(states) != set(parts):
            do = "Delete it to start anew, or repeat the run that wrote it."
            raise FormatError(
                need(f"a checkpoint of the run {self.about} in {self.file}", found, do)
            )
        for name, part in parts.items():
            part.load_state_dict(states[name])
        return step

    def save(self, step: int, parts: Mapping[str, Stateful], now: bool = False) -> None:
        """Write if it is time, or `now`."""
        if not now and time.monotonic() - self._last < self.seconds:
            return
        state = {
            "about": self.about,
            "step": step,
            "parts": {name: part.state_dict() for name, part in parts.items()},
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.file, lambda target: torch.save(state, target))
        self._last = time.monotonic()

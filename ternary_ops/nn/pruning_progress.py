# SPDX-License-Identifier: Apache-2.0
"""Progress of a network's Pruner, for compile and pack_ to check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Progress:
    """Steps done of total_steps, and the step at which masks and codes are final.

    Copies of a network, such as averages of its weights, share the progress of the original.
    """

    step: int
    freeze_step: int
    total_steps: int

    @property
    def finished(self) -> bool:
        """True once masks and codes are final."""
        return self.step >= self.freeze_step

    def __deepcopy__(self, memo: Any) -> Progress:
        """This object: copies share it."""
        return self

    def __str__(self) -> str:
        """For error messages."""
        return f"step {self.step} of {self.total_steps} (masks are final at {self.freeze_step})"

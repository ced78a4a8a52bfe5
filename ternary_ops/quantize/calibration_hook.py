# SPDX-License-Identifier: Apache-2.0
"""CalibrateAtFreeze: activation ranges are set when a Pruner freezes the codes, then learned."""

from __future__ import annotations

from torch import Tensor

from ternary_ops.quantize.calibration import calibrate
from ternary_ops.train.loop import Hook, TrainLoop


class CalibrateAtFreeze(Hook):
    """Calls `calibrate` with one batch after the step that freezes the codes."""

    def __init__(self, batch: Tensor) -> None:
        """batch: inputs as the model takes them."""
        self.batch = batch

    def on_phase(self, loop: TrainLoop, phase: str) -> None:
        """Calibrate in phase "frozen"."""
        if phase == "frozen":
            calibrate(loop.model, [self.batch])

# SPDX-License-Identifier: Apache-2.0
"""The line of a model's code that runs at the moment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType

import torch

_HERE = Path(__file__).parent
_TORCH_AND_TRACER = (f"{Path(torch.__file__).parent}{os.sep}", str(_HERE / "trace.py"))
_ENTRY = str(_HERE / "signature.py")  # where the model is called


def calling_line() -> str:
    """The innermost line of the model's own code among the callers, as "net.py:12"; "" for none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH_AND_TRACER):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename == _ENTRY:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"

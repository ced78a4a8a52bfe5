# SPDX-License-Identifier: Apache-2.0
"""The line of a model's source at which a trace stands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType

import torch

_HERE = Path(__file__).parent
_TRACING = (str(Path(torch.__file__).parent / "fx"), str(_HERE))
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_ENTRY = str(_HERE / "signature.py")  # where the model is called


def caller() -> str:
    """The innermost line, as file:number, that is none of the trace's own."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_TRACING):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def calling_line() -> str:
    """The innermost line of the model's own code among the callers, as "net.py:12"; "" for none."""
    frame: FrameType | None = sys._getframe(1)
    skipped = (_TORCH, str(_HERE / "trace.py"))
    while frame is not None and frame.f_code.co_filename.startswith(skipped):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename == _ENTRY:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"

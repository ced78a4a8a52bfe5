# SPDX-License-Identifier: Apache-2.0
"""The line of a model's source at which a trace stands."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_TRACING = (str(Path(torch.__file__).parent / "fx"), str(Path(__file__).parent))


def caller() -> str:
    """The innermost line, as file:number, that is none of the trace's own."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_TRACING):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"

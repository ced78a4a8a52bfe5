# SPDX-License-Identifier: Apache-2.0
"""The line of a model's code that runs at the moment."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

import torch

_HERE = Path(__file__).parent
_TORCH_AND_TRACER = (
    f"{Path(torch.__file__).parent}{os.sep}",
    str(_HERE / "trace.py"),
    str(_HERE / "tracer.py"),
    str(_HERE / "writes.py"),
    str(_HERE.parent / "nn" / "function_calls.py"),
)
_LIBRARY = (sysconfig.get_path("stdlib"), "<")
_ENTRY = str(_HERE / "signature.py")  # where the model is called


def calling_line() -> str:
    """The innermost line of the model's own code among the callers, as "net.py:12"; "" for none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH_AND_TRACER):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename == _ENTRY:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def line_of(error: BaseException) -> str:
    """The innermost line of the model's own code through which an error came, and its text: as
    "net.py:12 (if x.sum() > 0:)"; "" for none.
    """
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        library = file.startswith(_LIBRARY) and "site-packages" not in file
        if not (library or file.startswith(_TORCH_AND_TRACER) or file == _ENTRY):
            text = linecache.getline(file, number).strip()
            found = f"{Path(file).name}:{number}" + (f" ({text})" if text else "")
    return found

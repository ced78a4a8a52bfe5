# SPDX-License-Identifier: Apache-2.0
"""An image as a file holds it, and what readers of all formats share."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import FormatError, MissingExtra, need

Pixels = NDArray[Any]
ORIENTATION = 0x0112  # the tag of EXIF and TIFF


@dataclass(frozen=True)
class Picture:
    """Pixels uint8, uint16 or float32, [H, W] or [H, W, C], as `sr.upscale` takes them; the rest.

    icc, exif: as they lie in the file. dpi: pixels an inch, across and down.
    """

    pixels: Pixels
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None


def library(name: str) -> Any:
    """A module that reads or writes files; MissingExtra without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"PIL.Image": "Pillow", "PIL.ImageOps": "Pillow"}.get(name, name)
        do = "pip install 'ternary-ops[upscale]'"
        raise MissingExtra(need(f"{package} for image files", "none installed", do)) from error


def refused(path: Path, wanted: str, got: object, do: str) -> FormatError:
    """The error for a file whose pixels have no certain meaning here."""
    return FormatError(need(f"{path}: expected {wanted}", got, do))


def swaps_axes(orientation: int) -> bool:
    """True for an image that lies on its side."""
    return orientation in (5, 6, 7, 8)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """The image as it is to be seen; orientation: 1 to 8 as EXIF and TIFF count, others as 1."""
    if swaps_axes(orientation):
        pixels = np.swapaxes(pixels, 0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]

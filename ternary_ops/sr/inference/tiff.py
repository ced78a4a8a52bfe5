# SPDX-License-Identifier: Apache-2.0
"""TIFF files to pixels whose black is 0 and whose white is that of their type, or a named refusal.

A TIFF says what its numbers mean in half a dozen tags. Every combination is either read by all of
them or refused by name; none is guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ternary_ops.sr.inference.picture import (
    ORIENTATION,
    Picture,
    Pixels,
    library,
    refused,
    swaps_axes,
    turned,
)
from ternary_ops.sr.inference.upscaling import white_of

_ICC = 34675
_INK_SET = 332
_JPEG = (6, 7, 34892)
_FLOAT, _UNSIGNED = 3, 1  # SampleFormat
_GRAY = ("MINISWHITE", "MINISBLACK")
# Channels of a kind without extra ones.
_CHANNELS = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3, "PALETTE": 1, "SEPARATED": 4, "YCBCR": 3}
_EXTRA = {1: "ASSOCALPHA", 2: "UNASSALPHA"}


def is_tiff(path: Path) -> bool:
    """By its first bytes, whatever its name ends in."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(path: Path) -> Picture:
    """The one image of a file, turned as it says, alpha not multiplied in.

    Unsigned integers of up to 16 bits are brought to the whole range of uint8 or uint16, floats
    become float32, palettes and CMYK become RGB. Raises FormatError, named by tag, for signed or
    32-bit integers, several images, volumes, LAB and other colors, and channels without a meaning.
    """
    tifffile = library("tifffile")
    with tifffile.TiffFile(path) as file:
        page = _only(file, path)
        kind, alpha = _meaning(page, path)
        _check_samples(page, kind, path)
        pixels = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, 2)
        icc = page.tags.get(_ICC)
        about = None if icc is None or kind == "SEPARATED" else bytes(icc.value)
        orientation = page.tags.get(ORIENTATION)
        turn = 1 if orientation is None else int(orientation.value)
        pixels = _straight(_colors(page, kind, pixels, path), alpha)
        return Picture(np.ascontiguousarray(turned(pixels, turn)), about, None, _dpi(page, turn))


def _only(file: Any, path: Path) -> Any:
    """The page that is the image: smaller copies and masks go with it."""
    pages = [page for page in file.pages if not (page.subfiletype & 5)]
    if len(pages) != 1:
        raise refused(path, "a TIFF of one image", f"{len(pages)}", "Write each to its own file.")
    page = pages[0]
    if page.imagedepth > 1:
        do = "Write each slice to its own file."
        raise refused(path, "a TIFF of one image", f"a volume of {page.imagedepth}", do)
    return page


def _meaning(page: Any, path: Path) -> tuple[str, str | None]:
    """Photometric interpretation, and what the channel beside the colors is, if there is one."""
    kind = getattr(page.photometric, "name", str(page.photometric))
    compressed = page.compression in _JPEG
    known = kind in _CHANNELS
    if kind == "YCBCR":  # whose decoder makes RGB of it
        known = compressed
    if kind == "SEPARATED":
        inks = page.tags.get(_INK_SET)
        known = not compressed and (inks is None or int(inks.value) == 1)
    if not known:
        got = f"{kind} compressed by {page.compression!r}" if kind in _CHANNELS else kind
        do = "Save it as RGB or gray."
        raise refused(path, "gray, RGB, a palette or CMYK (PhotometricInterpretation)", got, do)
    extra = page.samplesperpixel - _CHANNELS[kind]
    if extra == 0:
        return kind, None
    names = [_EXTRA.get(int(value), "UNSPECIFIED") for value in page.extrasamples]
    if extra != 1 or names not in (["ASSOCALPHA"], ["UNASSALPHA"]) or kind in ("PALETTE", "YCBCR"):
        got = f"{kind} and {extra} more ({', '.join(names) or 'no ExtraSamples'})"
        do = "Save the extra channel as alpha, or without it."
        raise refused(path, "channels of color and at most one of alpha", got, do)
    if kind == "SEPARATED" or (kind == "MINISWHITE" and names == ["ASSOCALPHA"]):
        do = "Save it as RGB or gray, black 0."
        raise refused(path, "alpha beside RGB or gray", f"{kind} and {names[0]}", do)
    return kind, names[0]


def _check_samples(page: Any, kind: str, path: Path) -> None:
    """Refuse types whose white is not known."""
    bits, form = page.bitspersample, page.sampleformat
    if isinstance(bits, tuple) or isinstance(form, tuple):
        do = "Save it with 8 or 16 bits in every channel."
        raise refused(path, "one sample type for all channels", f"{bits} bits, formats {form}", do)
    form = int(form)
    fits = 1 <= bits <= 16 if form == _UNSIGNED else form == _FLOAT and kind != "PALETTE"
    fits &= kind != "SEPARATED" or form == _UNSIGNED
    if not fits:
        names = {1: "unsigned", 2: "signed", 3: "float", 5: "complex signed", 6: "complex"}
        got = f"{bits}-bit {names.get(form, f'SampleFormat {form}')}"
        do = "Save it with 8 or 16 unsigned bits, or as floats whose white is 1."
        raise refused(path, "samples of 1 to 16 unsigned bits, or floats", got, do)


def _colors(page: Any, kind: str, pixels: Pixels, path: Path) -> Pixels:
    """Gray or RGB, alpha untouched, white the largest of the type."""
    if kind == "PALETTE":
        return _from_palette(page, pixels, path)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise refused(path, "finite values", "NaN or infinity", "Replace them.")
        white: float = 1.0
    else:
        bits = page.bitspersample
        wanted = np.dtype(np.uint8 if bits <= 8 else np.uint16)
        white = white_of(wanted)
        most = 2**bits - 1
        if most == white:
            pixels = pixels.astype(wanted)
        else:
            pixels = np.rint(pixels.astype(np.float64) * (white / most)).astype(wanted)
    if kind == "MINISWHITE":
        dark = pixels.copy()
        gray = dark if dark.ndim == 2 else dark[..., 0]
        np.subtract(pixels.dtype.type(white), gray, out=gray)
        return dark
    return _from_cmyk(pixels) if kind == "SEPARATED" else pixels


def _from_palette(page: Any, pixels: Pixels, path: Path) -> Pixels:
    """RGB of 8 bits, of colors that are stored with 16, by some with 8."""
    colors = page.colormap
    if colors is None or colors.shape != (3, 2**page.bitspersample):
        raise refused(path, "a palette (ColorMap)", "none", "Save it as RGB.")
    if colors.max() > 255:
        colors = np.rint(colors / 257)
    made: Pixels = colors.T.astype(np.uint8)[pixels.astype(np.intp)]  # one bit comes as bool
    return made


def _from_cmyk(inks: Pixels) -> Pixels:
    """RGB as if inks were filters: without their profile no more is known."""
    white = white_of(inks.dtype)
    light = white - inks.astype(np.float64)
    made: Pixels = np.rint(light[..., :3] * light[..., 3:] / white).astype(inks.dtype)
    return made


def _straight(pixels: Pixels, alpha: str | None) -> Pixels:
    """Colors as they are before alpha is multiplied in."""
    if alpha != "ASSOCALPHA":
        return pixels
    white = 1.0 if pixels.dtype.kind == "f" else float(white_of(pixels.dtype))
    share = pixels[..., -1:] / white
    seen = share > 0
    colors = np.where(seen, pixels[..., :-1] / np.where(seen, share, 1), 0)
    if pixels.dtype.kind == "u":
        colors = np.rint(np.minimum(colors, white))
    return np.concatenate([colors.astype(pixels.dtype), pixels[..., -1:]], axis=2)


def _dpi(page: Any, orientation: int) -> tuple[float, float] | None:
    if not page.resolution:
        return None
    across, down = page.get_resolution(library("tifffile").RESUNIT.INCH)
    if (across, down) == (1, 1):
        return None
    return (down, across) if swaps_axes(orientation) else (across, down)

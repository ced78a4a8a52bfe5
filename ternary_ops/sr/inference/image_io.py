# SPDX-License-Identifier: Apache-2.0
"""Image files with all that is in them: bit depth, transparency, color profile, EXIF, dpi."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops._atomic import replace_file
from ternary_ops.errors import BadConfig, FormatError, MissingExtra, UnsupportedShape, need
from ternary_ops.sr.inference.picture import (
    ORIENTATION,
    Picture,
    library,
    refused,
    swaps_axes,
    turned,
)
from ternary_ops.sr.inference.tiff import is_tiff, read_tiff
from ternary_ops.sr.inference.upscaling import white_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_TIFF = (".tif", ".tiff")
_DEEP = (".png", *_TIFF)  # hold 16 bits
_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16")  # I;16: see _deep_png
_EXIF_SIZE = (40962, 40963)  # PixelXDimension, PixelYDimension, in the EXIF directory
_EXIF_DIRECTORY = 0x8769


def read(path: Path) -> Picture:
    """The image of a file, turned as its EXIF says.

    Palettes become RGB, CMYK becomes RGB without its profile; TIFF: see `tiff.read_tiff`. Raises
    FormatError for a file that is empty, cut off or no image, for an animation and for colors
    without a certain meaning, UnsupportedShape for one that is too large, FileNotFoundError,
    MissingExtra.
    """
    pillow = library("PIL.Image")
    if path.stat().st_size == 0:
        raise FormatError(need(f"an image in {path}", "an empty file", "Leave it out."))
    try:
        if is_tiff(path):
            return read_tiff(path)
        with pillow.open(path) as image:
            image.load()
            return _from_pillow(image, path)
    except pillow.DecompressionBombError as error:
        do = "Cut it into parts."
        raise UnsupportedShape(
            need(f"an image of a size that can be read in {path}", error, do)
        ) from error
    except (FormatError, UnsupportedShape, MissingExtra):
        raise
    except Exception as error:  # decoders raise what they please on damaged files
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise FormatError(need(f"an image in {path}", reason, "Leave it out.")) from error


def _from_pillow(image: Any, path: Path) -> Picture:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # whose others are views of the first
        raise refused(path, "one image", f"{frames} frames", "Write each to its own file.")
    if image.mode not in _MODES:
        do = "Save it as RGB or gray."
        raise refused(path, f"one of {', '.join(_MODES)}", image.mode, do)
    if image.mode == "CMYK" and "adobe" not in image.info:
        got, do = "one without, whose inks may be inverted", "Save it as RGB."
        raise refused(path, "CMYK with Adobe's marker", got, do)
    orientation = image.getexif().get(ORIENTATION, 1)
    upright = library("PIL.ImageOps").exif_transpose(image)
    exif = upright.getexif()
    dpi = image.info.get("dpi")
    about = Picture(
        np.empty(0),
        image.info.get("icc_profile") if image.mode != "CMYK" else None,
        exif.tobytes() if exif else None,
        dpi[::-1] if dpi and swaps_axes(orientation) else dpi,
    )
    depth = _png_depth(path) if image.format == "PNG" else 8
    if depth == 16:  # which Pillow reads as 8
        deep = library("imagecodecs").png_decode(path.read_bytes())
        return replace(about, pixels=np.ascontiguousarray(turned(deep, orientation)))
    clear = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
    gray = upright.mode in ("1", "L", "LA")
    if clear and upright.mode == "L":  # Pillow widens the gray, and leaves its key as it was
        upright.info["transparency"] *= 255 // (2**depth - 1)
    mode = {(True, True): "LA", (True, False): "L", (False, True): "RGBA", (False, False): "RGB"}
    return replace(about, pixels=np.asarray(upright.convert(mode[gray, clear])))


def _png_depth(path: Path) -> int:
    """Bits of a sample."""
    with path.open("rb") as file:
        return file.read(26)[24]


def write(path: Path, picture: Picture) -> None:
    """Write by suffix, in full or not at all. JPEG, WebP and BMP hold 8 bits: deeper pixels are
    rounded to them. PNG holds floats as 16 bits.

    Raises BadConfig for an unknown suffix, or transparency where the format has none.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        do = f"Use one of {', '.join(SUFFIXES)}."
        raise BadConfig(need("an image file as output", repr(path.name), do))
    pixels = picture.pixels
    clear = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    if clear and suffix in (".jpg", ".jpeg", ".bmp"):
        do = "Write PNG, WebP or TIFF, or drop alpha."
        raise BadConfig(need(f"an opaque image for {suffix}", "one with alpha", do))
    picture = replace(picture, pixels=_fitted(pixels, suffix))
    if suffix in _TIFF:
        replace_file(path, lambda target: _write_tiff(target, picture))
    elif suffix == ".png":
        replace_file(path, lambda target: target.write_bytes(_png_bytes(picture)))
    else:
        replace_file(path, lambda target: _write_pillow(target, suffix, picture))


def _fitted(pixels: NDArray[Any], suffix: str) -> NDArray[Any]:
    """In a type that the format holds, one channel as [H, W]."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if suffix in _TIFF and pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    wanted = np.uint16 if suffix in _DEEP and pixels.dtype != np.uint8 else np.uint8
    if pixels.dtype == wanted:
        return pixels
    share = np.clip(pixels / white_of(pixels.dtype), 0, 1)
    made: NDArray[Any] = np.rint(share * np.iinfo(wanted).max).astype(wanted)
    return made


def _write_pillow(target: Path, suffix: str, picture: Picture) -> None:
    module = library("PIL.Image")
    options: dict[str, Any] = {
        ".webp": {"quality": 95},
        ".jpg": {"quality": 95},
        ".jpeg": {"quality": 95},
    }.get(suffix, {})
    if suffix != ".bmp":
        options |= {"icc_profile": picture.icc} if picture.icc else {}
        options |= {"exif": _exif_bytes(picture)} if picture.exif else {}
    options |= {"dpi": picture.dpi} if picture.dpi and suffix != ".webp" else {}
    pixels = picture.pixels
    if suffix == ".webp" and pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(suffix, suffix[1:])
    module.fromarray(np.ascontiguousarray(pixels)).save(target, kind, **options)


def _write_tiff(target: Path, picture: Picture) -> None:
    pixels = picture.pixels
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    options: dict[str, Any] = {"photometric": "rgb" if channels >= 3 else "minisblack"}
    if channels in (2, 4):
        options |= {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
    if picture.dpi:
        options |= {"resolution": picture.dpi, "resolutionunit": "INCH"}
    if picture.icc:
        options["iccprofile"] = picture.icc
    library("tifffile").imwrite(
        target, pixels, compression="zlib", predictor=pixels.dtype.kind == "u", **options
    )


def _png_bytes(picture: Picture) -> bytes:
    """A PNG of 8 or 16 bits; color profile and EXIF go in behind its header.

    One filter and runs alone: a search among all, or for longer matches, takes longer than the
    network.
    """
    module = library("imagecodecs")
    data: bytes = module.png_encode(
        np.ascontiguousarray(picture.pixels),
        level=1,
        strategy=module.PNG.STRATEGY.RLE,
        filter=module.PNG.FILTER.PAETH,
    )
    end = len(_PNG) + 25  # signature, and a header of 13 bytes in its frame
    more = b""
    if picture.icc:
        more += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc))
    if picture.dpi:
        across, down = (round(v / 0.0254) for v in picture.dpi)
        more += _chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if picture.exif:
        more += _chunk(b"eXIf", _exif_bytes(picture).removeprefix(b"Exif\0\0"))
    return data[:end] + more + data[end:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _exif_bytes(picture: Picture) -> bytes:
    """The EXIF data with the size that the image has now."""
    exif = library("PIL.Image").Exif()
    exif.load(picture.exif)
    directory = exif.get_ifd(_EXIF_DIRECTORY)
    for tag, size in zip(
        _EXIF_SIZE, (picture.pixels.shape[1], picture.pixels.shape[0]), strict=True
    ):
        if tag in directory:
            directory[tag] = size
    made: bytes = exif.tobytes()
    return made

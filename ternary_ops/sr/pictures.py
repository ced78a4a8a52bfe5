# SPDX-License-Identifier: Apache-2.0
"""Image files with all that is in them: bit depth, transparency, color profile, EXIF, dpi."""

from __future__ import annotations

import importlib
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, FormatError, MissingExtra, UnsupportedShape, need
from ternary_ops.io.atomic import replace_file
from ternary_ops.sr.images import white_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_TIFF = (".tif", ".tiff")
_DEEP = (".png", *_TIFF)  # hold 16 bits
_PNG = b"\x89PNG\r\n\x1a\n"
_ICC_TAG = 34675
_EXIF_SIZE = (40962, 40963)  # PixelXDimension, PixelYDimension, in the EXIF directory
_EXIF_DIRECTORY = 0x8769


@dataclass(frozen=True)
class Picture:
    """Pixels uint8, uint16 or float32, [H, W] or [H, W, C], as `sr.upscale` takes them; the rest.

    icc, exif: as they lie in the file. dpi: pixels an inch, across and down.
    """

    pixels: NDArray[Any]
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None


def read(path: Path) -> Picture:
    """The image of a file, turned as its EXIF says.

    Palettes become RGB, CMYK becomes RGB without its profile. Raises FormatError for a file that is
    empty, cut off or no image, UnsupportedShape for one that is too large, FileNotFoundError,
    MissingExtra.
    """
    library = _library("PIL.Image")
    if path.stat().st_size == 0:
        raise FormatError(need(f"{path} is an image", "an empty file", "Leave it out."))
    try:
        if path.suffix.lower() in _TIFF:
            found = _read_tiff(path)
            if found is not None:
                return found
        with library.open(path) as image:
            image.load()
            return _from_pillow(image, path)
    except library.DecompressionBombError as error:
        do = "Cut it into parts."
        raise UnsupportedShape(need(f"{path} is of a size that can be read", error, do)) from error
    except (FormatError, UnsupportedShape, MissingExtra):
        raise
    except Exception as error:  # decoders raise what they please on damaged files
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise FormatError(need(f"{path} is an image", reason, "Leave it out.")) from error


def _from_pillow(image: Any, path: Path) -> Picture:
    turned = _library("PIL.ImageOps").exif_transpose(image)
    exif = turned.getexif()
    about = Picture(
        np.empty(0),
        image.info.get("icc_profile") if image.mode != "CMYK" else None,
        exif.tobytes() if exif else None,
        image.info.get("dpi"),
    )
    deep = _deep_png(path) if image.format == "PNG" else None
    if deep is not None:
        return replace(about, pixels=deep)
    if turned.mode in ("I;16", "I;16B", "I;16L", "I"):
        return replace(about, pixels=np.asarray(turned).astype(np.uint16))
    if turned.mode == "F":
        return replace(about, pixels=np.asarray(turned))
    clear = turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info
    gray = turned.mode in ("1", "L", "LA", "La")
    mode = {(True, True): "LA", (True, False): "L", (False, True): "RGBA", (False, False): "RGB"}
    return replace(about, pixels=np.asarray(turned.convert(mode[gray, clear])))


def _deep_png(path: Path) -> NDArray[Any] | None:
    """A PNG of 16 bits, which Pillow reads as 8; None for others."""
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(_PNG) or len(head) < 26 or head[24] != 16:
        return None
    pixels: NDArray[Any] = _library("imagecodecs").png_decode(path.read_bytes())
    return pixels


def _read_tiff(path: Path) -> Picture | None:
    """Pixels as they are stored; None for kinds that Pillow converts, palettes and CMYK."""
    library = _library("tifffile")
    with library.TiffFile(path) as file:
        page = file.pages[0]
        plain = page.photometric in (library.PHOTOMETRIC.MINISBLACK, library.PHOTOMETRIC.RGB)
        if not plain or page.dtype not in (np.uint8, np.uint16, np.float32) or page.imagedepth > 1:
            return None
        if page.tags.get("Orientation") and page.tags["Orientation"].value != 1:
            return None
        pixels = page.asarray()
        if page.planarconfig == library.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, 2)
        icc = page.tags.get(_ICC_TAG)
        resolution = page.get_resolution(library.RESUNIT.INCH) if page.resolution else None
        dpi = None if resolution in (None, (1, 1)) else (resolution[0], resolution[1])
        return Picture(pixels, None if icc is None else bytes(icc.value), None, dpi)


def write(path: Path, picture: Picture) -> None:
    """Write by suffix, in full or not at all. JPEG, WebP and BMP hold 8 bits: deeper pixels are
    rounded to them. PNG holds floats as 16 bits.

    Raises BadConfig for an unknown suffix, or transparency where the format has none.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        do = f"Use one of {', '.join(SUFFIXES)}."
        raise BadConfig(need("the output is an image file", repr(path.name), do))
    pixels = picture.pixels
    clear = pixels.ndim == 3 and pixels.shape[2] in (2, 4)
    if clear and suffix in (".jpg", ".jpeg", ".bmp"):
        do = "Write PNG, WebP or TIFF, or drop alpha."
        raise BadConfig(need(f"{suffix} holds opaque images", "one with alpha", do))
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
    library = _library("PIL.Image")
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
    library.fromarray(np.ascontiguousarray(pixels)).save(target, kind, **options)


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
    _library("tifffile").imwrite(
        target, pixels, compression="zlib", predictor=pixels.dtype.kind == "u", **options
    )


def _png_bytes(picture: Picture) -> bytes:
    """A PNG of 8 or 16 bits; color profile and EXIF go in behind its header.

    One filter and runs alone: a search among all, or for longer matches, takes longer than the
    network.
    """
    library = _library("imagecodecs")
    data: bytes = library.png_encode(
        np.ascontiguousarray(picture.pixels),
        level=1,
        strategy=library.PNG.STRATEGY.RLE,
        filter=library.PNG.FILTER.PAETH,
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
    exif = _library("PIL.Image").Exif()
    exif.load(picture.exif)
    directory = exif.get_ifd(_EXIF_DIRECTORY)
    for tag, size in zip(
        _EXIF_SIZE, (picture.pixels.shape[1], picture.pixels.shape[0]), strict=True
    ):
        if tag in directory:
            directory[tag] = size
    made: bytes = exif.tobytes()
    return made


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = {"PIL.Image": "Pillow", "PIL.ImageOps": "Pillow"}.get(name, name)
        do = "pip install 'ternary-ops[upscale]'"
        raise MissingExtra(need(f"image files need {package}", "none installed", do)) from error

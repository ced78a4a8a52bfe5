# SPDX-License-Identifier: Apache-2.0
"""Every kind of pixels that a TIFF, PNG, JPEG or WebP may hold: read right, or refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import png, tiff
from PIL import Image

from ternary_ops.cli import main
from ternary_ops.errors import FormatError
from ternary_ops.sr.inference.image_io import read

RNG = np.random.default_rng(3)
Array = np.ndarray[Any, Any]


def integers(bits: int, *shape: int) -> Array:
    made = RNG.integers(0, 2**bits, shape, dtype=np.uint64)
    made.flat[0], made.flat[-1] = 2**bits - 1, 0
    return made.astype({1: np.uint8, 2: np.uint16}.get(-(-bits // 8), np.uint32))


def full(samples: Array, bits: int) -> Array:
    """What samples of so many bits mean in 8 or 16."""
    wanted: Any = np.uint8 if bits <= 8 else np.uint16
    return np.rint(samples / (2**bits - 1) * np.iinfo(wanted).max).astype(wanted)


def same(path: Path, wanted: Array, most: float = 0) -> None:
    found = read(path).pixels
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert np.abs(found.astype(np.float64) - wanted).max() <= most


GRAY = [(bits, order) for bits in (1, 2, 4, 6, 8, 10, 12, 14) for order in "<>"]


@pytest.mark.parametrize(("bits", "order"), GRAY)
@pytest.mark.parametrize("white", ["minisblack", "miniswhite"])
def test_gray_tiff_of_any_depth(tmp_path: Path, bits: int, order: str, white: str) -> None:
    given, path = integers(bits, 9, 13), tmp_path / "x.tif"
    path.write_bytes(tiff(given, bits, int(white == "minisblack"), order))
    wanted = full(given, bits)
    same(path, wanted if white == "minisblack" else np.iinfo(wanted.dtype).max - wanted)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
def test_rgb_tiff(tmp_path: Path, dtype: Any, planar: Any, compression: Any) -> None:
    made = np.dtype(dtype)
    given = integers(8 * made.itemsize, 9, 13, 3) if made.kind == "u" else RNG.random((9, 13, 3))
    given = given.astype(dtype)
    stored = given if planar == "contig" else np.moveaxis(given, 2, 0)
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, stored, photometric="rgb", planarconfig=planar, compression=compression,
        bigtiff=planar == "contig", byteorder=">",
    )  # fmt: skip
    same(path, given if made.kind == "u" else given.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite", "rgb"])
def test_alpha_of_a_tiff_is_taken_as_it_says(tmp_path: Path, kind: Any, dtype: Any) -> None:
    channels = 4 if kind == "rgb" else 2
    white = 1.0 if dtype == np.float32 else float(np.iinfo(dtype).max)
    straight = (RNG.random((9, 13, channels)) * white).astype(dtype)
    straight[0, :4, -1] = white
    straight[1, :4, -1] = 0
    share = straight[..., -1:] / white
    # Where alpha is 0 no color is left; elsewhere both roundings count as much as is seen of them.
    joined = straight.copy()
    product = straight[..., :-1].astype(np.float64) * share
    joined[..., :-1] = product if white == 1.0 else np.rint(product)
    wanted = straight.copy()
    wanted[..., :-1][np.broadcast_to(share == 0, product.shape)] = 0
    for extra, given, aim in (("unassalpha", straight, straight), ("assocalpha", joined, wanted)):
        stored = given.copy()
        aim = aim.copy()
        if kind == "miniswhite":
            stored[..., 0] = white - stored[..., 0]
            if extra == "assocalpha":
                continue  # refused below
        path = tmp_path / f"{extra}.tif"
        tifffile.imwrite(path, stored, photometric=kind, extrasamples=[extra], planarconfig=1)
        found = read(path).pixels.astype(np.float64)
        off = np.abs(found - aim) * np.where(share > 0, share, 1)
        assert off.max() <= (1.01 if white > 1 and extra == "assocalpha" else 1e-6 * white)


def test_palettes_inks_and_turned_tiff(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    index, colors = integers(8, 9, 13), integers(16, 3, 256).astype(np.uint16)
    tifffile.imwrite(path, index, photometric="palette", colormap=colors)
    same(path, np.rint(colors.T / 257).astype(np.uint8)[index])
    for bits, order in ((1, "<"), (2, ">"), (4, "<"), (4, ">")):
        few, own = integers(bits, 9, 13), colors[:, : 2**bits]
        path.write_bytes(tiff(few, bits, 3, order, *own.ravel().tolist()))
        same(path, np.rint(own.T / 257).astype(np.uint8)[few])
    for bits in (8, 16):
        inks = integers(bits, 9, 13, 4)
        tifffile.imwrite(path, inks, photometric="separated")
        white = 2.0**bits - 1
        light = (white - inks[..., :3]) * (white - inks[..., 3:]) / white
        same(path, np.rint(light).astype(inks.dtype))
    given = integers(16, 9, 13, 3)
    for turn in range(1, 9):
        tag = (274, "H", 1, turn, True)
        tifffile.imwrite(path, given, photometric="rgb", extratags=[tag], resolution=(100, 50))
        seen = {
            1: given,
            2: np.fliplr(given),
            3: np.rot90(given, 2),
            4: np.flipud(given),
            5: np.swapaxes(given, 0, 1),
            6: np.rot90(given, -1),
            7: np.swapaxes(np.rot90(given, 2), 0, 1),
            8: np.rot90(given),
        }
        same(path, seen[turn])
        assert read(path).dpi == ((50, 100) if turn > 4 else (100, 50))


def test_jpeg_in_tiff(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(32) * 3, np.arange(48) * 2).astype(np.uint8)
    given = np.stack([ramp, ramp[::-1], 255 - ramp], 2)
    path = tmp_path / "x.tif"
    for space in ("YCBCR", "RGB"):
        options = {"level": 95, "outcolorspace": space}
        tifffile.imwrite(
            path, given, photometric="rgb", compression="jpeg", compressionargs=options
        )
        assert np.abs(read(path).pixels.astype(int) - given).max() < 12


def test_a_small_copy_beside_the_image_is_left_out(tmp_path: Path) -> None:
    given, path = integers(8, 9, 13, 3), tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(given, photometric="rgb")
        file.write(given[::2, ::2], photometric="rgb", subfiletype=1)
    same(path, given)


REFUSED = {
    "signed": ("16-bit signed", lambda: {"pixels": integers(8, 9, 13).astype(np.int16)}),
    "signed byte": ("8-bit signed", lambda: {"pixels": integers(7, 9, 13).astype(np.int8)}),
    "32 bits": ("32-bit unsigned", lambda: {"pixels": integers(32, 9, 13)}),
    "32 signed": ("32-bit signed", lambda: {"pixels": integers(31, 9, 13).astype(np.int32)}),
    "complex": ("64-bit complex", lambda: {"pixels": np.full((9, 13), 1j, np.complex64)}),
    "nan": ("NaN", lambda: {"pixels": np.full((9, 13), np.nan, np.float32)}),
    "pages": ("got 3", lambda: {"pixels": integers(8, 3, 9, 13), "photometric": "minisblack"}),
    "volume": (
        "volume of 16",
        lambda: {
            "pixels": integers(8, 16, 16, 16),
            "photometric": "minisblack",
            "volumetric": True,
            "tile": (16, 16, 16),
        },
    ),
    "lab": ("CIELAB", lambda: {"pixels": integers(8, 9, 13, 3), "photometric": "cielab"}),
    "ycbcr": ("YCBCR", lambda: {"pixels": integers(8, 9, 13, 3), "photometric": "ycbcr"}),
    "mask": ("MASK", lambda: {"pixels": integers(8, 9, 13), "photometric": "mask"}),
    "unknown": (
        "UNSPECIFIED",
        lambda: {
            "pixels": integers(8, 9, 13, 4),
            "photometric": "rgb",
            "extrasamples": ["unspecified"],
        },
    ),
    "bands": (
        "MINISBLACK and 2 more",
        lambda: {
            "pixels": integers(8, 9, 13, 3),
            "photometric": "minisblack",
            "planarconfig": "contig",
        },
    ),
    "two": (
        "2 more",
        lambda: {
            "pixels": integers(8, 9, 13, 5),
            "photometric": "rgb",
            "extrasamples": ["unassalpha", "unspecified"],
        },
    ),
    "inks": (
        "UNASSALPHA",
        lambda: {
            "pixels": integers(8, 9, 13, 5),
            "photometric": "separated",
            "extrasamples": ["unassalpha"],
        },
    ),
    "inverted": (
        "ASSOCALPHA",
        lambda: {
            "pixels": integers(8, 9, 13, 2),
            "photometric": "miniswhite",
            "extrasamples": ["assocalpha"],
            "planarconfig": "contig",
        },
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tiff_without_a_certain_meaning_is_refused_by_name(tmp_path: Path, name: str) -> None:
    said, make = REFUSED[name]
    options = make()
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, options.pop("pixels"), **options)
    with pytest.raises(FormatError, match=said):
        read(path)
    assert main(["upscale", str(path), str(tmp_path / "y.tif"), "--scale", "2"]) == 1
    assert not (tmp_path / "y.tif").exists()


def _png_cases() -> dict[str, tuple[bytes, Array]]:
    made: dict[str, tuple[bytes, Array]] = {}
    for laced in (False, True):
        for depth in (1, 2, 4, 8, 16):
            gray = integers(depth, 9, 13)
            wanted = full(gray, depth)
            made[f"gray {depth} {laced}"] = png(gray, 0, depth, laced), wanted
            key = int(gray[3, 5])
            white = np.iinfo(wanted.dtype).max
            clear = np.where(gray == key, 0, white).astype(wanted.dtype)
            file = png(gray, 0, depth, laced, tRNS=struct.pack(">H", key))
            made[f"gray {depth} {laced} tRNS"] = file, np.stack([wanted, clear], 2)
            if depth <= 8:
                index, colors = integers(depth, 9, 13), integers(8, 2**depth, 3)
                alphas = integers(8, 2**depth)
                table = {"PLTE": colors.tobytes()}
                made[f"palette {depth} {laced}"] = (
                    png(index, 3, depth, laced, **table),
                    colors[index],
                )
                file = png(index, 3, depth, laced, **table, tRNS=alphas.tobytes())
                made[f"palette {depth} {laced} tRNS"] = (
                    file,
                    np.concatenate([colors, alphas[:, None]], 1)[index],
                )
        for depth in (8, 16):
            for color, channels in ((2, 3), (4, 2), (6, 4)):
                given = integers(depth, 9, 13, channels)
                made[f"{channels} x {depth} {laced}"] = png(given, color, depth, laced), given
            given = integers(depth, 9, 13, 3)
            key = given[3, 5]
            clear = np.where((given == key).all(2), 0, 2**depth - 1).astype(given.dtype)
            file = png(given, 2, depth, laced, tRNS=struct.pack(">HHH", *key.tolist()))
            made[f"RGB {depth} {laced} tRNS"] = file, np.dstack([given, clear])
    return made


PNG = _png_cases()


@pytest.mark.parametrize("name", PNG)
def test_png(tmp_path: Path, name: str) -> None:
    data, wanted = PNG[name]
    (tmp_path / "x.png").write_bytes(data)
    same(tmp_path / "x.png", wanted)


@pytest.mark.parametrize("depth", [8, 16])
def test_png_is_turned_as_its_exif_says(tmp_path: Path, depth: int) -> None:
    given, exif = integers(depth, 9, 13, 3), Image.Exif()
    exif[0x0112] = 6
    data = png(given, 2, depth, eXIf=exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "x.png").write_bytes(data)
    same(tmp_path / "x.png", np.rot90(given, -1))


def test_jpeg_inks_and_turns(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(32) * 3, np.arange(48) * 2).astype(np.uint8)
    given, path = np.stack([ramp, ramp[::-1], 255 - ramp], 2), tmp_path / "x.jpg"
    inks = np.concatenate([255 - given, np.full((32, 48, 1), 20, np.uint8)], 2)
    Image.fromarray(inks, "CMYK").save(path, quality=98)
    wanted = np.rint(given * (235 / 255))
    assert np.abs(read(path).pixels - wanted).max() < 12
    marker = path.read_bytes()
    at = marker.index(b"\xff\xee")
    path.write_bytes(
        marker[:at] + marker[at + 2 + int.from_bytes(marker[at + 2 : at + 4], "big") :]
    )
    with pytest.raises(FormatError, match="Adobe"):
        read(path)
    turned = Image.Exif()
    for turn in range(1, 9):
        turned[0x0112] = turn
        Image.fromarray(given).save(path, quality=98, exif=turned, dpi=(100, 50))
        found = read(path)
        wide = turn in (1, 2, 3, 4)
        assert found.pixels.shape == ((32, 48, 3) if wide else (48, 32, 3))
        assert found.dpi == ((100, 50) if wide else (50, 100))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(integers(8, 9, 13, 3)) for _ in range(3)]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(FormatError, match="3 frames"):
        read(tmp_path / f"x{suffix}")


def test_a_tiff_of_another_name_is_read_as_one(tmp_path: Path) -> None:
    given = integers(16, 9, 13, 3)
    tifffile.imwrite(tmp_path / "x.tif", given, photometric="rgb")
    (tmp_path / "x.tif").rename(tmp_path / "x.png")
    same(tmp_path / "x.png", given)
    tifffile.imwrite(tmp_path / "y.tif", integers(31, 9, 13).astype(np.int32))
    (tmp_path / "y.tif").rename(tmp_path / "y.bmp")
    with pytest.raises(FormatError, match="32-bit signed"):
        read(tmp_path / "y.bmp")

# SPDX-License-Identifier: Apache-2.0
"""Image files in and out: what is in them stays; folders, damaged files, interrupted runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from ternary_ops import sr
from ternary_ops.cli import main
from ternary_ops.errors import BadConfig, FormatError, MissingExtra, UnsupportedShape
from ternary_ops.sr.inference import jobs, picture
from ternary_ops.sr.inference.image_io import read, write
from ternary_ops.sr.inference.picture import Picture

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    if dtype == np.float32:
        return rng.random(shape).astype(np.float32)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.fixture()
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    torch.save(sr.FMEN(2, 4, 4, 4, 1, [0, 0]).state_dict(), path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg", ".bmp"])
def test_pixels_come_back(tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: Any) -> None:
    path, pixels = tmp_path / f"x{suffix}", noise(*shape, dtype=dtype)
    clear = len(shape) == 3 and shape[2] in (2, 4)
    if clear and suffix in (".jpg", ".bmp"):
        with pytest.raises(BadConfig, match="opaque"):
            write(path, Picture(pixels))
        assert not list(tmp_path.iterdir())
        return
    write(path, Picture(pixels))
    found = read(path).pixels
    lossless = {".png": (np.uint8, np.uint16), ".tif": (np.uint8, np.uint16, np.float32)}
    if dtype in lossless.get(suffix, ()):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, pixels)
    elif suffix == ".png":
        np.testing.assert_allclose(found / 65_535, pixels, atol=1e-5)
    elif suffix == ".bmp":
        white = np.iinfo(dtype).max if dtype != np.float32 else 1
        np.testing.assert_allclose(found / 255, pixels / white, atol=0.6 / 255)
    else:
        assert found.dtype == np.uint8 and found.shape[:2] == shape[:2]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_what_else_is_in_a_file_stays(tmp_path: Path, suffix: str, dtype: Any) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    exif.get_ifd(0x8769)[40962] = 3
    given = Picture(noise(6, 9, 3, dtype=dtype), ICC, exif.tobytes(), (72.0, 72.0))
    path = tmp_path / f"x{suffix}"
    write(path, given)
    found = read(path)
    assert found.icc == ICC
    if suffix != ".webp":
        assert found.dpi is not None and found.dpi[0] == pytest.approx(72, abs=0.02)
    if suffix != ".tif":
        kept = Image.Exif()
        kept.load(found.exif)
        assert kept[0x010F] == "camera" and kept.get_ifd(0x8769)[40962] == 9


def test_kinds_of_images_that_people_have(tmp_path: Path) -> None:
    base = Image.fromarray(noise(8, 6, 3))
    base.convert("P").save(tmp_path / "palette.png")
    clear = base.convert("P")
    clear.save(tmp_path / "clear.png", transparency=3)
    base.convert("CMYK").save(tmp_path / "cmyk.jpg")
    base.convert("CMYK").save(tmp_path / "cmyk.tif")
    base.convert("1").save(tmp_path / "bits.png")
    base.convert("LA").save(tmp_path / "la.png")
    Image.fromarray(noise(8, 6, dtype=np.uint16)).save(tmp_path / "gray16.png")
    tifffile.imwrite(tmp_path / "planar.tif", noise(3, 8, 6), photometric="rgb", planarconfig=2)
    turned = Image.Exif()
    turned[0x0112] = 6
    base.save(tmp_path / "turned.jpg", exif=turned)
    wanted = {
        "palette.png": ((8, 6, 3), np.uint8),
        "clear.png": ((8, 6, 4), np.uint8),
        "cmyk.jpg": ((8, 6, 3), np.uint8),
        "cmyk.tif": ((8, 6, 3), np.uint8),
        "bits.png": ((8, 6), np.uint8),
        "la.png": ((8, 6, 2), np.uint8),
        "gray16.png": ((8, 6), np.uint16),
        "planar.tif": ((8, 6, 3), np.uint8),
        "turned.jpg": ((6, 8, 3), np.uint8),
    }
    for name, (shape, dtype) in wanted.items():
        found = read(tmp_path / name)
        assert (found.pixels.shape, found.pixels.dtype) == (shape, dtype), name
    assert 0x0112 not in Image.open(tmp_path / "turned.jpg").getexif() or not (
        read(tmp_path / "turned.jpg").exif
    )


def test_files_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(60, 60, 3)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.webp").write_text("hello")
    (tmp_path / "text.tif").write_text("hello")
    for name in ("cut.png", "empty.jpg", "text.webp", "text.tif"):
        with pytest.raises(FormatError, match="an image in"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnsupportedShape, match="size"):
        read(tmp_path / "whole.png")
    with pytest.raises(BadConfig, match="image file"):
        write(tmp_path / "x.txt", Picture(noise(3, 3)))


def _folder(path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    for number in range(5):
        write(path / f"{number}.png", Picture(noise(4 + number, 5, 3)))
    write(path / "deep" / "6.tif", Picture(noise(4, 4, 4, dtype=np.uint16)))
    (path / "notes.txt").write_text("no image")
    (path / "broken.jpg").write_bytes(b"\xff\xd8\xff")


def test_folders(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _folder(tmp_path / "in")
    out = tmp_path / "out"
    command = ["upscale", str(tmp_path / "in"), str(out), "--weights", str(weights), "--recursive"]
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "broken.jpg" in said and "6 made, 1 failed" in said
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "deep/6.tif"]
    assert read(out / "4.png").pixels.shape == (16, 10, 3)
    deep = read(out / "deep" / "6.tif").pixels
    assert deep.shape == (8, 8, 4) and deep.dtype == np.uint16
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    (out / "3.png").unlink()
    assert main([*command, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    states = {Path(row["source"]).name: row["state"] for row in rows}
    assert states == {
        **{f"{i}.png": "kept" for i in (0, 1, 2, 4)},
        "3.png": "made",
        "6.tif": "kept",
        "broken.jpg": "failed",
    }
    for path, time in before.items():
        assert path.name == "3.png" or path.stat().st_mtime_ns == time
    assert main([*command, "--overwrite", "--quiet"]) == 1
    assert all(p.stat().st_mtime_ns > before[p] for p in before)


def test_one_file(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.png", Picture(noise(9, 7, 4), ICC))
    given = ["upscale", str(tmp_path / "a.png")]
    rest = ["--weights", str(weights), "--tile", "5", "--threads", "2"]
    assert main([*given, str(tmp_path / "b.png"), *rest]) == 0
    made = read(tmp_path / "b.png")
    assert made.pixels.shape == (18, 14, 4) and made.icc == ICC
    assert main([*given, str(tmp_path / "d.tif"), *rest, "--compare"]) == 0
    beside = read(tmp_path / "d.compare.png").pixels
    assert beside.shape == (18, 28, 4)
    np.testing.assert_array_equal(beside[:, 14:], read(tmp_path / "d.tif").pixels)
    assert not np.array_equal(beside[:, :14], beside[:, 14:])
    assert main([*given, str(tmp_path / "e.jpg"), *rest, "--compare", "--alpha", "drop"]) == 0
    assert read(tmp_path / "e.compare.png").pixels.shape == (18, 28, 3)
    for name in ("d.tif", "d.compare.png", "e.jpg", "e.compare.png"):
        (tmp_path / name).unlink()
    pattern = [str(tmp_path / "?.png"), str(tmp_path / "more"), "--format", "webp"]
    assert main(["upscale", *pattern, *rest]) == 0
    assert sorted(p.name for p in (tmp_path / "more").iterdir()) == ["a.webp", "b.webp"]
    assert "2 made" in capsys.readouterr().out
    assert main([*given, str(tmp_path / "c.jpg"), *rest]) == 1
    assert "opaque" in capsys.readouterr().out
    assert main([*given, str(tmp_path / "c.jpg"), *rest, "--alpha", "drop"]) == 0
    assert read(tmp_path / "c.jpg").pixels.shape == (18, 14, 3)


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.png", Picture(noise(4, 4)))
    target = tmp_path / "a.png" / "sub" / "b.png"
    assert main(["upscale", str(tmp_path / "a.png"), str(target), "--weights", str(weights)]) == 1
    assert f"{target} cannot be written: Not a directory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere.png", "out.png"], "files, folders or patterns"),
        (["empty", "out"], "images in the inputs"),
        (["a.png", "out.png", "--scale", "4"], "makes 2"),
        (["a.png", "out.png", "--alpha", "some"], "alpha as one of"),
        (["a.png", "out.png", "--tile", "0"], "tile"),
        (["a.png", "out.png", "--weights", "a.png"], "state dict"),
        (["a.png", "sub/a.png", "out"], "output file of its own"),
        (["a.png", "out.gif"], "1 to out.gif"),
        (["a.png", "sub/a.png", "out.png"], "2 to out.png"),
        (["a.png", "out", "--format", "gif"], "a format out of"),
    ],
)
def test_bad_input(
    tmp_path: Path, weights: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/a.png"):
        write(tmp_path / name, Picture(noise(4, 4)))
    assert main(["upscale", "--weights", str(weights), *argv]) == 2
    streams = capsys.readouterr()
    assert said in streams.err + streams.out
    assert not list(tmp_path.glob("out*"))


def test_progress_never_falls(tmp_path: Path) -> None:
    _folder(tmp_path / "in")
    network = sr.Upscaler(sr.FMEN(2, 4, 4, 4, 1, [0, 0]))
    works = jobs.plan([str(tmp_path / "in")], tmp_path / "out", False, None)
    seen: list[float] = []
    outcomes = list(jobs.run(works, network, jobs.Options(tile=3), seen.append))
    assert [o.work for o in outcomes] == works
    assert seen == sorted(seen) and seen[-1] == len(works) and len(seen) > 2 * len(works)


def test_a_run_that_is_cut_off_leaves_whole_files(tmp_path: Path) -> None:
    _folder(tmp_path / "in")
    network = sr.Upscaler(sr.FMEN(2, 4, 4, 4, 1, [0, 0]))
    works = jobs.plan([str(tmp_path / "in")], tmp_path / "out", False, None)

    def interrupt(done: float) -> None:
        if done > 2.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(jobs.run(works, network, jobs.Options(), interrupt))
    left = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in left] == ["0.png", "1.png"]
    for path in left:
        assert read(path).pixels.shape[1] == 10
    again = {o.work.target.name: o.state for o in jobs.run(works, network, jobs.Options(), _quiet)}
    assert [again[f"{i}.png"] for i in range(5)] == ["kept"] * 2 + ["made"] * 3


def _quiet(done: float) -> None:
    pass


def test_pytorch_that_is_missing_is_named(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    code = "import sys; sys.modules['torch'] = None\nfrom ternary_ops.cli import main\n"
    code += f"sys.exit(main(['upscale', 'a.png', 'b.png', '--weights', {str(weights)!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "MissingExtra" in done.stderr and "ternary-ops[sr]" in done.stderr


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtra, match=r"tifffile.*\n.*ternary-ops\[upscale\]"):
        picture.library("tifffile")

# SPDX-License-Identifier: Apache-2.0
"""Upscaling arrays: tiles equal the whole, kinds of images stay, transparency makes no fringes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packs import DATA, needs_weights
from sr_networks import SMALL
from torch import Tensor

from ternary_ops import sr
from ternary_ops.errors import BadConfig, UnsupportedShape
from ternary_ops.sr.inference import tiling
from ternary_ops.sr.inference.tiling import cut
from ternary_ops.sr.models.attention import ESA, Place


class Smooth(sr.SRNetwork):
    """Interpolates: what comes out is known, and colors bleed into each other."""

    family = "Smooth"
    input_range = 255.0

    def __init__(self) -> None:
        super().__init__(2)
        self.same = torch.nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.same.weight.copy_(torch.eye(3)[:, :, None, None])

    @property
    def radius(self) -> int:
        return 1

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.same(x), scale_factor=2, mode="bilinear", align_corners=False)


def picture(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth random values, uint8."""
    rng = np.random.default_rng(seed)
    h, w = shape[:2]
    coarse = rng.random((h // 6 + 2, w // 6 + 2, *shape[2:]))
    rows, columns = np.linspace(0, h // 6 + 1, h), np.linspace(0, w // 6 + 1, w)
    smooth = coarse[rows.astype(int)][:, columns.astype(int)]
    return np.rint(smooth * 255).astype(np.uint8)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("tile", [5, 48, 90])
def test_tiles_are_the_whole_image(name: str, tile: int) -> None:
    network = SMALL[name]()
    run = sr.Upscaler(network)
    x = np.moveaxis(picture(131, 77, 3), 2, 0).astype(np.float32) / 255
    whole = run(x, 1000)
    calls: list[float] = []
    made = run(x, tile, calls.append)
    assert made.shape == whole.shape == (3, 131 * network.scale, 77 * network.scale)
    if network.radius is None:
        np.testing.assert_allclose(made, whole, atol=2e-5 * float(np.abs(whole).max()))
    else:
        np.testing.assert_array_equal(made, whole)
    assert len(calls) > 1 and calls == sorted(calls) and calls[-1] == 1.0


@needs_weights
@pytest.mark.parametrize("name", ["EFDN_x4.npz", "FMEN-S_x4.npz", "rlfn_ntire_x4.pth"])
def test_tiles_of_published_networks(name: str) -> None:
    from PIL import Image

    pixels = np.asarray(Image.open(DATA / "set5" / "HR" / "woman.png").convert("RGB"))
    pixels = pixels[:205, :150]
    run = sr.Upscaler(sr.load(DATA / "sr_weights" / name))
    whole, made = sr.upscale(pixels, run), sr.upscale(pixels, run, tile=96)
    off = np.abs(whole.astype(int) - made)
    if run.network.radius is None:
        assert off.max() <= 1 and (off > 0).mean() <= 1e-4
    else:
        assert off.max() == 0


def test_attention_knows_its_place() -> None:
    """Exactly: a crop that begins at a multiple of the step, the pooled map from the whole."""
    torch.manual_seed(0)
    esa = ESA(6, 3, full=False).double()
    x = torch.randn(1, 6, 95, 201, dtype=torch.float64)
    with torch.no_grad():
        whole = esa(x)
        esa.place = Place(95, 201, 24, 60)
        part = esa(x[..., 24:, 60:180])
        esa.place = Place(95, 201, 0, 0)
        torch.testing.assert_close(esa(x), whole, rtol=1e-12, atol=1e-12)
    # What the crop lacks at its left, top and right changes two cells and what they stretch over.
    torch.testing.assert_close(part[..., 30:, 30:90], whole[..., 54:, 90:150])
    assert float((part - whole[..., 24:, 60:180]).abs().max()) > 1e-6


def test_cuts_cover_every_pixel_once() -> None:
    for pixels in (1, 5, 47, 48, 49, 200):
        for side in (1, 7, 48, 500):
            for step in (1, 6):
                made = cut(pixels, side, 9, step)
                kept = [i for t in made for i in range(t.first, t.last)]
                assert kept == list(range(pixels))
                for t in made:
                    assert t.last - t.first <= -(-side // step) * step
                    assert t.low == max(0, t.first - 9) // step * step
                    assert t.high == min(pixels, t.high) and t.low % step == 0
                    assert t.high >= min(pixels, t.last + 9)


def test_little_memory_means_tiles_and_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    run = sr.Upscaler(SMALL["FMEN"]())
    pixels = picture(300, 200, 3)
    whole = sr.upscale(pixels, run)
    assert run.peak_bytes(300, 200) > 3e6
    sizes: list[tuple[int, ...]] = []
    inner = run.program

    def watched(x: Any) -> Any:
        sizes.append(x.shape)
        return inner(x)

    monkeypatch.setattr(run, "program", watched)
    watched.peak_bytes = inner.peak_bytes  # type: ignore[attr-defined]
    monkeypatch.setattr(tiling, "free_memory", lambda: 3e6)
    np.testing.assert_array_equal(sr.upscale(pixels, run), whole)
    assert len(sizes) > 1
    assert all(inner.peak_bytes(size) <= 1.5e6 for size in sizes)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 200, 3), (14, 14, 1), (15, 15, 2), (17, 31, 4), (13, 2, 3), (40, 33)]
)
@pytest.mark.parametrize("name", ["EFDN", "IMDN"])
def test_size_and_kind_stay(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    run = _runs.setdefault(name, sr.Upscaler(SMALL[name]()))
    pixels = (picture(*shape) / 255 * (np.iinfo(dtype).max if dtype in _WHOLE else 1)).astype(dtype)
    made = sr.upscale(pixels, run)
    assert made.dtype == dtype and made.ndim == pixels.ndim
    assert made.shape == (shape[0] * run.scale, shape[1] * run.scale, *shape[2:])
    assert np.isfinite(made).all()


_WHOLE = (np.uint8, np.uint16)
_runs: dict[str, sr.Upscaler] = {}


def test_sixteen_bits_stay_sixteen() -> None:
    run = sr.Upscaler(Smooth())
    dark = np.full((8, 9), 200, np.uint16)
    np.testing.assert_array_equal(sr.upscale(dark, run), np.full((16, 18), 200))
    ramp = np.linspace(0, 65_535, 600).astype(np.uint16)[None].repeat(3, 0)
    assert len(np.unique(sr.upscale(ramp, run))) > 1000
    deep = sr.upscale(ramp / 65_535, run)
    np.testing.assert_allclose(sr.upscale(ramp, run) / 65_535, deep, atol=1e-5)


def test_one_alpha_everywhere_stays() -> None:
    run = sr.Upscaler(SMALL["IMDN"]())
    for value in (0, 77, 255):
        pixels = picture(12, 12, 4)
        pixels[..., 3] = value
        for mode in ("model", "bicubic"):
            assert (sr.upscale(pixels, run, alpha=mode)[..., 3] == value).all()
    assert sr.upscale(pixels, run, alpha="drop").shape == (36, 36, 3)


def test_hidden_colors_do_not_bleed() -> None:
    run = sr.Upscaler(Smooth())
    sprite = np.zeros((20, 20, 4), np.uint8)  # transparent black
    sprite[5:15, 5:15] = (200, 120, 40, 255)
    for mode in ("model", "bicubic"):
        made = sr.upscale(sprite, run, alpha=mode)
        seen = made[made[..., 3] > 0][:, :3].astype(int)
        assert np.abs(seen - (200, 120, 40)).max() < 3
        assert set(np.unique(made[..., 3])) > {0, 255}
    bled = sr.upscale(sprite[..., :3], run)
    assert np.abs(bled[10:30, 9].astype(int) - (200, 120, 40)).max() > 20
    gray = sr.upscale(sprite[..., [0, 3]], run)
    assert np.abs(gray[gray[..., 1] > 0][:, 0].astype(int) - 200).max() < 3


def test_networks_and_files_are_taken_too(tmp_path: Path) -> None:
    network = SMALL["IMDN"]()
    torch.save(sr.EFDN(2, 8).state_dict(), tmp_path / "net.pth")
    pixels = picture(16, 15, 3)
    np.testing.assert_array_equal(
        sr.upscale(pixels, network), sr.upscale(pixels, sr.Upscaler(network))
    )
    assert sr.upscale(pixels, tmp_path / "net.pth").shape == (32, 30, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 3, 5), np.uint8),
        np.zeros((0, 3, 3), np.uint8),
        np.zeros((3,), np.uint8),
        np.zeros((3, 3), np.int32),
        torch.zeros(3, 3),
        None,
    ],
    ids=lambda image: type(image).__name__,
)
def test_other_arrays_are_refused(image: Any) -> None:
    with pytest.raises(UnsupportedShape, match="an image of uint8"):
        sr.upscale(image, Smooth())


def test_bad_options_are_refused() -> None:
    run = sr.Upscaler(Smooth())
    with pytest.raises(BadConfig, match="tile"):
        sr.upscale(picture(4, 4), run, tile=0)
    with pytest.raises(BadConfig, match="alpha"):
        sr.upscale(picture(4, 4), run, alpha="keep")

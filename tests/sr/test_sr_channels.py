# SPDX-License-Identifier: Apache-2.0
"""Super-resolution of fields with any number of channels: networks, programs, tiles, training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ternary_ops import runtime, sr
from ternary_ops.errors import BadConfig, UnsupportedShape
from ternary_ops.sr.inference.pretrained import facts

NETWORKS = {
    "EFDN": lambda c: sr.EFDN(2, 8, image_channels=c),
    "FMEN": lambda c: sr.FMEN(2, 6, 5, 4, 1, [1, 0], image_channels=c),
    "IMDN": lambda c: sr.IMDN(3, 8, 1, image_channels=c),
    "RFDN": lambda c: sr.RFDN(2, 8, 1, 4, image_channels=c),
    "RLFN": lambda c: sr.RLFN(2, 10, 12, 1, 4, image_channels=c),
}
CHANNELS = [1, 2, 5]


def build(name: str, channels: int) -> sr.SRNetwork:
    torch.manual_seed(channels)
    return NETWORKS[name](channels).eval()


def field(h: int, w: int, c: int, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).random((h, w, c), np.float32)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_programs_and_checkpoints(name: str, channels: int, tmp_path: Path) -> None:
    network = build(name, channels)
    program = sr.to_program(network)
    known = facts(program)
    assert (known.channels, known.scale) == (channels, network.scale)
    x = field(21, 18, channels)
    white = network.input_range
    with torch.inference_mode():
        given = torch.from_numpy(x).permute(2, 0, 1)[None] * white
        wanted = (network(given) / white)[0].permute(1, 2, 0).numpy()
    made = sr.upscale(x, program)
    assert made.shape == (21 * network.scale, 18 * network.scale, channels)
    np.testing.assert_allclose(made, wanted, atol=3e-5 * np.abs(wanted).max())
    program.save(tmp_path / "net.safetensors")
    again = sr.upscale(x, runtime.load(tmp_path / "net.safetensors"))
    np.testing.assert_array_equal(again, made)
    with pytest.raises(UnsupportedShape, match=rf"\[N, {channels}, H, W\]"):
        network(torch.rand(1, channels + 1, 20, 20))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", ["FMEN", "RLFN"])
def test_tiles_are_the_whole(name: str, channels: int) -> None:
    run = sr.Upscaler(build(name, channels))
    x = field(50, 43, channels)
    whole = sr.upscale(x, run)
    np.testing.assert_allclose(sr.upscale(x, run, tile=16), whole, atol=1e-5)
    assert run.peak_bytes(100, 100) > run.peak_bytes(50, 50) > 0


@pytest.mark.parametrize("channels", CHANNELS)
def test_no_channel_is_alpha_and_integers_stay(channels: int) -> None:
    run = sr.Upscaler(build("FMEN", channels))
    x = (field(20, 16, channels) * 255).round().astype(np.uint8)
    wanted = sr.upscale(x.astype(np.float32) / 255, run)
    made = sr.upscale(x, run, alpha="drop")
    assert made.dtype == np.uint8 and made.shape == (40, 32, channels)
    np.testing.assert_array_equal(made, np.rint(wanted * 255).clip(0, 255))
    with pytest.raises(UnsupportedShape, match=f"{channels} channels"):
        sr.upscale(field(20, 16, 3), run)
    if channels == 1:
        np.testing.assert_array_equal(sr.upscale(x[..., 0], run), made[..., 0])


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_checkpoint_says_its_channels(channels: int, tmp_path: Path) -> None:
    for name in ("EFDN", "FMEN"):
        network = build(name, channels)
        torch.save(network.state_dict(), tmp_path / "net.pth")
        loaded = sr.load(tmp_path / "net.pth")
        assert (loaded.image_channels, loaded.scale) == (channels, 2)
        x = torch.rand(1, channels, 17, 16)
        assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize("channels", CHANNELS)
def test_training_on_fields(channels: int) -> None:
    """With edges too; floats below 0 and above 1 are fields like any other."""
    rows, columns = np.mgrid[0:40, 0:40] / 40
    fields = [
        np.stack([3 * np.sin(5 * rows + k * columns + i) for k in range(channels)], 2)
        for i in range(4)
    ]
    patches = sr.Patches(fields, 2, 10)
    assert patches.channels == channels
    small, large = patches.batch(0, 8, 1)
    assert float(small.min()) < -1 and float(large.max()) > 1
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    assert float((pooled - small).abs().mean()) < 0.1
    network = sr.IMDN(2, 8, 1, image_channels=channels)

    def loss() -> float:
        with torch.no_grad():
            return float((network(small) - large).abs().mean())

    before = loss()
    sr.train(network, patches, sr.SRTrainConfig(30, 1e-2, 2, 10, edges=0.01))
    assert loss() < 0.7 * before


def test_edges_of_fields_are_those_of_each_channel() -> None:
    loss = sr.EdgeLoss(patch=4)
    a, b = torch.rand(2, 2, 5, 9, 8)
    apart = [loss(a[:, [i]], b[:, [i]]) for i in range(5)]
    torch.testing.assert_close(loss(a, b), torch.stack(apart).mean())


def test_paired_and_unpaired_patches_of_whole_fields() -> None:
    pairs = [(field(6, 8, 2, i), field(12, 16, 2, 50 + i)) for i in range(5)]
    paired = sr.PairedPatches(pairs, 2, turned=False, ids=range(5))
    small, large = paired.batch(0, 3, 0)
    assert small.shape == (3, 2, 6, 8) and large.shape == (3, 2, 12, 16)
    whole = {p[0].tobytes(): p[1].tobytes() for p in pairs}
    for low, high in zip(small, large, strict=True):
        key = np.ascontiguousarray(low.permute(1, 2, 0).numpy()).tobytes()
        assert whole[key] == np.ascontiguousarray(high.permute(1, 2, 0).numpy()).tobytes()
    unpaired = sr.UnpairedPatches([p[1] for p in pairs], turned=False)
    assert torch.equal(unpaired.batch(3, 2, 0, 1), unpaired.batch(3, 2, 0, 1))
    assert not torch.equal(unpaired.batch(3, 2, 0, 1), unpaired.batch(3, 2, 0, 2))


def test_arrays_that_do_not_fit_are_refused() -> None:
    good = field(6, 8, 2), field(12, 16, 2)
    with pytest.raises(UnsupportedShape, match="a large image"):
        sr.PairedPatches([(good[0], field(12, 15, 2))], 2)
    with pytest.raises(UnsupportedShape, match="square to be turned"):
        sr.PairedPatches([good], 2)
    with pytest.raises(UnsupportedShape, match="one number of channels"):
        sr.UnpairedPatches([field(8, 8, 2), field(8, 8, 1)], 4)
    with pytest.raises(BadConfig, match="1 ids"):
        sr.PairedPatches([good], 2, turned=False, ids=[1, 2])
    for bad in (0, -1, 1.5):
        with pytest.raises(BadConfig, match="image_channels"):
            sr.EFDN(2, 8, image_channels=bad)

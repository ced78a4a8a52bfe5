# SPDX-License-Identifier: Apache-2.0
"""Super-resolution programs as models: white is 1, facts are in their nodes, ours come along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Builder
from sr_networks import SMALL

import ternary_ops as tops
from ternary_ops import runtime, sr
from ternary_ops.cli import main
from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel
from ternary_ops.runtime import Program
from ternary_ops.sr.inference.pretrained import facts


def eight_bits(name: str) -> sr.SRNetwork:
    torch.manual_seed(0)
    network: sr.SRNetwork = SMALL[name]().eval()
    tops.quantize_(network, tops.plan(network, tops.TernaryConfig("int8")))
    tops.calibrate(network, [torch.rand(2, 3, 40, 40) * network.input_range])
    return network


def picture(h: int, w: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_white_is_one(name: str) -> None:
    network = SMALL[name]().eval()
    x = torch.rand(1, 3, 24, 31)
    with torch.inference_mode():
        wanted = (network(x * network.input_range) / network.input_range).numpy()
    made = sr.to_program(network)(x.numpy())
    np.testing.assert_allclose(made, wanted, atol=3e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", SMALL)
def test_facts_are_those_of_the_network(name: str) -> None:
    network = SMALL[name]().eval()
    known = facts(sr.to_program(network))
    assert (known.scale, known.smallest) == (network.scale, network.smallest)
    assert known.radius == network.radius


@pytest.mark.parametrize("name", SMALL)
def test_a_program_file_is_a_model(name: str, tmp_path: Path) -> None:
    network = eight_bits(name)
    program = sr.to_program(network)
    program.save(tmp_path / "model.safetensors")
    pixels = picture(70, 51)
    wanted = sr.upscale(pixels, network)
    np.testing.assert_array_equal(sr.upscale(pixels, tmp_path / "model.safetensors"), wanted)
    run = sr.Upscaler(sr.open_model(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(sr.upscale(pixels, run, tile=33), wanted)
    assert sr.upscale(picture(1, 3), run).shape == (run.scale, 3 * run.scale, 3)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="scale of 2 and 4, .*got 3"):
        sr.open_model(3)
    with pytest.raises(BadConfig, match="efdn-x2, efdn-x4 or a file"):
        sr.open_model("no-such-model")
    with pytest.raises(FileNotFoundError):
        sr.open_model(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a file")
    with pytest.raises(FormatError):
        sr.open_model(tmp_path / "bad.safetensors")
    b = Builder(0, c=3)
    b("conv2d", 0, w=b.weight("float", 3, 3, 3, 3))
    with pytest.raises(FormatError, match="larger by a whole factor"):
        sr.Upscaler(Program(b.graph(), (1, 3, 9, 9)))
    b = Builder(0, c=4)
    b("conv2d", 0, w=b.weight("float", 3, 4))
    with pytest.raises(FormatError, match="keeps their channels"):
        sr.Upscaler(Program(b.graph(), (1, 4, 9, 9)))
    network = SMALL["FMEN"]()
    tops.quantize_(network, tops.plan(network, tops.TernaryConfig("int8")))
    with pytest.raises(UnsupportedModel, match="calibrate"):
        sr.to_program(network)


@pytest.mark.parametrize("scale", sr.MODELS)
def test_our_own_models(scale: int, tmp_path: Path) -> None:
    """Small, quick to open, exact in tiles where they see only a part, good on any image."""
    name = sr.MODELS[scale]
    file = Path(sr.__file__).parent / "weights" / f"{name}.safetensors"
    assert file.stat().st_size < 300_000
    program = sr.open_model(name)
    assert isinstance(program, runtime.Program)
    run = sr.Upscaler(program)
    assert run.scale == scale
    rows, columns = np.mgrid[:90, :120]
    gray = 128 + 80 * np.sin(rows / 9) * np.cos(columns / 7)
    pixels = np.repeat(gray[..., None], 3, 2).round().astype(np.uint8)
    made = sr.upscale(pixels, run)
    assert made.shape == (90 * scale, 120 * scale, 3)
    fine = np.repeat(np.repeat(pixels, scale, 0), scale, 1).astype(float)
    assert np.abs(made - fine).mean() < 4
    np.testing.assert_array_equal(sr.upscale(pixels, run, tile=50), made)


def test_upscaling_needs_no_torch(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture(12, 17)).save(tmp_path / "a.png")
    code = "import sys; sys.modules['torch'] = None\nfrom ternary_ops.cli import main\n"
    code += "sys.exit(main(['upscale', 'a.png', 'b.png', '--threads', '1', '--quiet']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "b.png").size == (68, 48)


def test_the_command_works_out_of_the_box(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture(20, 30)).save(tmp_path / "a.png")
    source = str(tmp_path / "a.png")
    for scale in (2, 4):
        target = tmp_path / f"x{scale}.png"
        assert main(["upscale", source, str(target), "--scale", str(scale), "--quiet"]) == 0
        assert Image.open(target).size == (30 * scale, 20 * scale)
    assert main(["upscale", source, str(tmp_path / "d.png"), "--quiet"]) == 0
    assert Image.open(tmp_path / "d.png").size == (120, 80)
    named = ["upscale", source, str(tmp_path / "n.png"), "--model", "efdn-x2", "--quiet"]
    assert main(named) == 0
    assert main([*named, "--scale", "4"]) != 0

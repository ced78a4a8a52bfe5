# SPDX-License-Identifier: Apache-2.0
"""`ternary-ops compress` on the user's images: folders, functions, libraries, resume, torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from library_networks import small, stand_in_libraries
from machines import HANGS
from PIL import Image

from ternary_ops import runtime
from ternary_ops.cli import main
from ternary_ops.data import classification, image_folder
from ternary_ops.errors import BadConfig, FormatError
from ternary_ops.progress import progress_bars
from ternary_ops.quantize import engine_costs
from ternary_ops.quantize.recipes import get_recipe
from ternary_ops.study import compressing
from ternary_ops.study.compressing import Job, compress
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.config import TrainConfig

NET = """
import numpy as np
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))

def unsupported():
    class Odd(nn.Module):
        def forward(self, x):
            return x.flatten(1).cumsum(1)[:, :3]
    return nn.Sequential(nn.Conv2d(3, 3, 1), Odd())

def arrays():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    x = rng.integers(0, 60, (60, 3, 8, 8)).astype(np.uint8)
    x[y == 1, :, ::2] += 120
    x[y == 2, :, :, ::2] += 120
    return x, y

def one_array():
    return np.zeros(3)
"""


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = rng.integers(0, 60, (count, 10, 8, 3)).astype(np.uint8)
    x[y == 1, ::2] += 120
    x[y == 2, :, ::2] += 120
    return x, y


def save_images(folder: Path, count: int, seed: int) -> None:
    x, y = stripes(count, seed)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a network and three classes of striped images, H 10, W 8."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    save_images(tmp_path / "photos" / "train", 60, 0)
    save_images(tmp_path / "photos" / "val", 30, 1)
    return tmp_path


def test_a_folder_becomes_normalized_images(folder: Path) -> None:
    (folder / "photos/train/class1/broken.jpg").write_bytes(b"\xff\xd8 no image")
    (folder / "photos/train/class1/notes.txt").write_text("not an image")
    reading = classification.Reading(mean=(0.5, 0.25, 0.125), std=(0.5, 2.0, 1.0))
    split = classification.load_folder(folder / "photos", reading)
    assert split.x_train.shape == (60, 3, 10, 8) and split.x_test.shape == (30, 3, 10, 8)
    assert any("1 images could not be read" in note for note in split.notes)
    assert any("broken.jpg" in note for note in split.notes)
    first = np.asarray(Image.open(folder / "photos/train/class0/0.png"), np.float32) / 255
    want = (first - np.float32([0.5, 0.25, 0.125])) / np.float32([0.5, 2.0, 1.0])
    np.testing.assert_array_equal(split.x_train[:1][0].permute(1, 2, 0).numpy(), want)
    assert split.y_train.bincount().tolist() == [20, 20, 20] and split.classes == 3


def test_a_folder_without_parts_is_split_once_and_scaled(folder: Path) -> None:
    photos = folder / "photos" / "train"
    first, second = (
        classification.load_folder(photos, classification.Reading(size=(6, 4), gray=True))
        for _ in "ab"
    )
    assert first.x_train.shape == (48, 1, 6, 4) and len(first.x_test) == 12
    assert torch.equal(first.x_test[:], second.x_test[:])
    # The middle is kept: a square of a wide image has no part of its ends.
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10], wide[:, 20:] = 200, 200
    Image.fromarray(wide).save(photos / "class0" / "!wide.png")
    pixels = image_folder.read_folder(photos, (5, 5)).train[0][0]
    assert int(pixels[:, :, 1:-1].max()) == 0


def test_bytes_and_floats_of_one_image_are_one_input() -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4)).astype(np.uint8)
    y = np.arange(20) % 4
    reading = classification.Reading((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    given = {"x": x, "y": y, "x_test": x, "y_test": y}
    floats = {**given, "x": x.astype(np.float32) / 255, "x_test": x.astype(np.float32) / 255}
    ours, theirs = (
        classification.from_arrays(given, reading),
        classification.from_arrays(floats, reading),
    )
    assert torch.equal(ours.x_test[:], theirs.x_test[:])
    numbers = torch.tensor([3, 1, 7])
    a, b = (Augmentation(s.x_train, 2, True).take(5, numbers) for s in (ours, theirs))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: (p / "train" / "class3").mkdir(), "readable image to train on in class class3"),
        (lambda p: (p / "val" / "strange").mkdir(), "strange"),
        (lambda p: [f.write_bytes(b"x") for f in (p / "train/class0").iterdir()], "class0"),
    ],
)
def test_folders_that_are_refused(folder: Path, change: Any, said: str) -> None:
    change(folder / "photos")
    with pytest.raises((BadConfig, FormatError), match=said):
        classification.load_folder(folder / "photos", classification.Reading(size=(8, 8)))


def test_more_pixels_than_memory_are_refused_before_any_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "free_memory", lambda: 1e4)
    with pytest.raises(BadConfig, match="GB free"):
        classification.load_folder(folder / "photos")


def compress_command(*more: str) -> list[str]:
    return ["compress", "--model", "net.py:build", "--epochs", "2", "--batch", "12", *more]


def test_compress_takes_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "photos", "--mean", "0.3", "--std", "0.2", "--flip", "-o", "a.safetensors"]
    assert main(compress_command(*options)) == 0
    assert "3 classes: class0, class1, class2" in capsys.readouterr().out
    split = classification.load_folder(Path("photos"), classification.Reading((0.3,), (0.2,)))
    logits = runtime.load("a.safetensors")(split.x_test[:].numpy())
    right = (logits.argmax(1) == split.y_test.numpy()).mean()
    assert right > 0.8
    # `run` on the file reads an image as training did.
    options = ["photos/val/class0/0.png", "--mean", "0.3", "--std", "0.2", "-o", "y.npy"]
    assert main(["run", "a.safetensors", *options]) == 0
    np.testing.assert_array_equal(np.load("y.npy"), logits[:1])
    assert not Path("a.checkpoint").exists()


def test_compress_takes_a_function(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(compress_command("--data", "net.py:arrays", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["agreement"] > 90


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "net.py:one_array"], "two or four arrays from"),
        (["--data", "net.py:missing"], "missing() in net.py"),
        (["--data", "nothing"], "nothing"),
        (["--data", "net.py:arrays", "--size", "8"], "folder of images"),
        (["--data", "photos", "--size", "8x8x8"], "--size"),
        (["--data", "photos", "--mean", "1,2"], "one number or 3, got 2"),
        (["--data", "photos", "--std", "0"], "--std"),
        (["--data", "photos", "--std", "a"], "numbers for --std"),
        (["--data", "photos", "--trained"], "torchvision: or timm:"),
        (["--data", "photos", "--batch", "1"], "--batch"),
        (["--data", "photos", "--rate", "0"], "--rate"),
        (["--data", "photos", "--shift", "-1"], "--shift"),
        (["--data", "photos", "--model", "net.py:unsupported"], "cumsum"),
        (["--data", "photos", "--model", "net.py:broken"], "broken"),
    ],
)
def test_what_is_refused_before_training(
    folder: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert main(compress_command(*options)) == 2
    assert said in capsys.readouterr().err
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in str(p)] == before


class CutOff(Exception):
    pass


class Stop:
    """Progress that ends the process, as it were, after so many steps of a stage."""

    def __init__(self, stage: str, steps: int) -> None:
        self.wanted, self.left = stage, steps

    def stage(self, name: str, steps: int) -> Any:
        outer = self

        class Stage:
            def __enter__(self) -> Any:
                return self.advance

            def __exit__(self, *error: object) -> None:
                pass

            def advance(self) -> None:
                if outer.wanted in name:
                    outer.left -= 1
                    if outer.left == 0:
                        raise CutOff

        return Stage()


def job(folder: Path, **changes: Any) -> Job:
    from ternary_ops.study.user_code import load_builder

    split = classification.load_folder(folder / "photos")
    course = TrainConfig(epochs=2, rate=3e-3, batch=12)
    given: dict[str, Any] = {"dense": course, "ternary": course, "flip": True} | changes
    return Job("net", load_builder(str(folder / "net.py:build")), split, threads=1, **given)


@pytest.mark.parametrize("stage", ["dense", "ternarize"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_file(
    folder: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressing, "_CHECKPOINT_SECONDS", 0.0)
    kept = folder / "b.checkpoint"
    with progress_bars(quiet=True) as quiet:
        assert compress(job(folder), folder / "a.safetensors", quiet) is not None
        with pytest.raises(CutOff):
            compress(job(folder, checkpoints=kept), folder / "b.safetensors", Stop(stage, 7))
        assert kept.exists() and not (folder / "b.safetensors").exists()
        with pytest.raises(BadConfig, match="--resume"):
            compress(job(folder, checkpoints=kept), folder / "b.safetensors", quiet)
        other = job(folder, checkpoints=kept, resume=True, dense=TrainConfig(3, 1e-3, 12))
        changed = (
            other
            if stage == "dense"
            else job(folder, checkpoints=kept, resume=True, recipe=get_recipe("safe"))
        )
        with pytest.raises(FormatError, match="of the run"):
            compress(changed, folder / "b.safetensors", quiet)
        resumed = job(folder, checkpoints=kept, resume=True)
        if stage == "ternarize":  # the plan with its costs is there: nothing is measured again
            plan = (kept / "plan.json").read_text(encoding="utf-8")
            (kept / "plan.json").write_text(plan[:-9], encoding="utf-8")
            with pytest.raises(FormatError, match="a plan in"):
                compress(resumed, folder / "b.safetensors", quiet)
            (kept / "plan.json").write_text(plan, encoding="utf-8")
            monkeypatch.setattr(engine_costs, "measure", None)
        assert compress(resumed, folder / "b.safetensors", quiet) is not None
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()
    assert not kept.exists()


def test_two_processes_train_one_network(folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [
            *command,
            "-m",
            "ternary_ops",
            *compress_command("--data", "photos"),
            "-o",
            "c.safetensors",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("wrote c.safetensors") == 1
    split = classification.load_folder(folder / "photos")
    logits = runtime.load("c.safetensors")(split.x_test[:].numpy())
    assert (logits.argmax(1) == split.y_test.numpy()).mean() > 0.6


def test_processes_that_cannot_share_a_batch(folder: Path) -> None:
    from ternary_ops.train.distributed import Ranks

    with progress_bars(quiet=True) as quiet, pytest.raises(BadConfig, match="3 processes"):
        compress(
            job(folder, dense=TrainConfig(1, 1e-3, 64)),
            folder / "a.safetensors",
            quiet,
            Ranks(0, 3),
        )


def test_compress_takes_a_network_of_a_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_libraries(monkeypatch)
    torch.save(small(3).state_dict(), "weights.pt")
    options = ["--model", "torchvision:resnet18", "--weights", "weights.pt", "--data", "photos"]
    assert main(compress_command(*options, "-o", "d.safetensors")) == 0
    assert Path("d.safetensors").exists()

# SPDX-License-Identifier: Apache-2.0
"""`ternary-ops compress`: the demo, your own network, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ternary_ops import quantize, runtime
from ternary_ops.benchmark import torch_free_process
from ternary_ops.cli import main
from ternary_ops.data import classification
from ternary_ops.errors import (
    BadConfig,
    FormatError,
    TernaryOpsError,
    UnsupportedModel,
    UnsupportedShape,
)
from ternary_ops.models import digits_resnet
from ternary_ops.models.weights import load_weights
from ternary_ops.study import compressing, user_code
from ternary_ops.study.compressing import warnings_of
from ternary_ops.train.config import TrainConfig

NET = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))

def not_a_network():
    return 3

def wrong_input():
    return nn.Conv2d(2, 3, 1)

def few_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

def broken():
    raise KeyError("oops")
"""


@pytest.fixture()
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a network, three classes of stripes, and weights of both kinds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    x = rng.integers(0, 60, (200, 1, 8, 8)).astype(np.uint8)
    x[y == 1, :, ::2] += 120
    x[y == 2, :, :, ::2] += 120
    np.savez(tmp_path / "data.npz", x=x, y=y)
    state = user_code.load_builder("net.py:build")().state_dict()
    torch.save(state, tmp_path / "net.pt")
    save_file(state, tmp_path / "net.safetensors")
    return tmp_path


def test_the_demo_keeps_its_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "digits.safetensors"
    assert main(["compress", "--json", "-o", str(output)]) == 0
    found = json.loads(capsys.readouterr().out)
    accuracy, layers = found["accuracy"], found["report"]["layers"]
    assert accuracy["dense"] > 97 and accuracy["drop"] <= 1.0
    assert accuracy["agreement"] > 98
    ternary = [row for row in layers if row["kind"] == "ternary"]
    quads = sum(row["quads"] for row in ternary)
    assert abs(sum(row["empty_quads"] for row in ternary) - 0.9 * quads) <= 1
    assert found["report"]["file_bytes"] == output.stat().st_size < found["fp32_bytes"] / 49
    assert {"torch fp32", "ternary-ops"} <= set(found["ms_per_image"][0]["ms"])
    assert output.with_suffix(".png").exists()
    split = classification.digits()
    y = runtime.load(output)(split.x_test.numpy())
    right = 100 * (y.argmax(1) == split.y_test.numpy()).mean()
    assert right == pytest.approx(accuracy["ternary"])


@pytest.mark.parametrize("weights", [None, "net.pt", "net.safetensors"])
def test_own_network(files: Path, weights: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compress", "--model", "net.py:build", "--data", "data.npz", "--zeros", "0.5"]
    argv += ["--epochs", "2", "-o", "out.safetensors"]
    if weights:
        argv += ["--weights", weights]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "net.py:build" in out and "wrote out.safetensors" in out
    program = runtime.load(files / "out.safetensors")
    assert program(np.zeros((2, 1, 8, 8), np.float32)).shape == (2, 3)


@pytest.mark.parametrize("recipe", quantize.RECIPES)
def test_recipes_do_what_they_say(
    files: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["compress", "--model", "net.py:build", "--data", "data.npz", "--recipe", recipe]
    assert main([*argv, "--epochs", "1", "--json", "-o", f"{recipe}.safetensors"]) == 0
    layers = json.loads(capsys.readouterr().out)["report"]["layers"]
    config = quantize.get_recipe(recipe).config
    *_, last = layers
    assert last["kind"] == ("ternary" if recipe == "smallest" else "int8")
    pruned = [row for row in layers[1:] if recipe == "smallest" or row is not last]
    assert {row["kind"] for row in pruned} == {config.weights}
    empty, quads = (sum(row[key] for row in pruned) for key in ("empty_quads", "quads"))
    assert abs(empty - config.zeros * quads) <= 1


@pytest.mark.parametrize(
    ("before", "after", "classes", "said"),
    [
        (99.0, 96.1, 10, ()),
        (99.0, 95.9, 10, ("3.10 points of accuracy are lost, more than 3: try more --epochs",)),
        (90.0, 14.0, 10, ("14.00 % of the test images are right, less than 1.5 times chance",)),
        (12.0, 11.0, 10, ("the float network is right in 12.00 % of the test images, chance",)),
        (70.0, 74.0, 2, ("the float network is right in 70.00 %",)),
        (60.0, 61.0, 10, ()),
    ],
)
def test_a_result_that_is_nothing_to_rely_on_is_named(
    before: float, after: float, classes: int, said: tuple[str, ...]
) -> None:
    found = warnings_of(before, after, classes)
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_warnings_stand_in_json_and_table(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressing, "_MOST_LOST", -1000.0)  # whatever comes out
    monkeypatch.setattr(compressing, "_CHANCES", 0.0)
    argv = ["compress", "--model", "net.py:build", "--data", "data.npz", "--weights", "net.pt"]
    for more in (["--json"], []):
        assert main([*argv, "--epochs", "1", "-o", "w.safetensors", *more]) == 0
        out = capsys.readouterr().out
        found = json.loads(out)["warnings"] if more else [out]
        assert len(found) == 1 and "points of accuracy are lost" in found[0]


def test_a_recipe_is_a_plan_and_rules_come_first() -> None:
    model = digits_resnet(8)
    rules = {"fc": quantize.TernaryConfig("float"), "*.conv2": quantize.TernaryConfig(zeros=0.3)}
    made = quantize.get_recipe("smallest").plan(model, rules=rules)
    assert made["fc"].action == "float" and made["layer1.0.conv2"].config.zeros == 0.3
    assert quantize.get_recipe("smallest").plan(model)["fc"].action == "ternary"
    other = quantize.get_recipe("smallest").with_zeros(0.7, "element").plan(model)
    assert {(row.config.zeros, row.pattern) for row in other if row.action == "ternary"} == {
        (0.7, "element")
    }
    with pytest.raises(BadConfig, match="fastest, smallest, safe"):
        quantize.get_recipe("best")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--recipe", "best"], "BadConfig"),
        (["--model", "net.py:build"], "BadConfig"),
        (["--data", "data.npz"], "BadConfig"),
        (["--weights", "net.pt"], "BadConfig"),
        (["--model", "net.py", "--data", "data.npz"], "BadConfig"),
        (["--model", "none.py:build", "--data", "data.npz"], "BadConfig"),
        (["--model", "net.py:nothing", "--data", "data.npz"], "UnsupportedModel"),
        (["--model", "net.py:not_a_network", "--data", "data.npz"], "UnsupportedModel"),
        (["--model", "net.py:broken", "--data", "data.npz"], "UnsupportedModel"),
        (["--model", "net.py:wrong_input", "--data", "data.npz"], "UnsupportedModel"),
        (["--model", "net.py:few_classes", "--data", "data.npz"], "UnsupportedModel"),
        (["--model", "net.py:build", "--data", "none.npz"], "FileNotFoundError"),
        (["--model", "net.py:build", "--data", "net.pt"], "FormatError"),
        (["--model", "net.py:build", "--data", "data.npz", "--weights", "net.py"], "FormatError"),
        (["--model", "net.py:build", "--data", "data.npz", "--weights", "o.pt"], "FormatError"),
        (["--zeros", "1"], "BadConfig"),
        (["--pattern", "3by3"], "BadConfig"),
        (["--epochs", "0"], "BadConfig"),
        (["-o", "x.npz"], "BadConfig"),
        (["-o", "nowhere/x.safetensors"], "BadConfig"),
    ],
)
def test_bad_input(
    files: Path, argv: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(digits_resnet(4).state_dict(), "o.pt")
    before = sorted(files.rglob("*"))
    assert main(["compress", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ternary-ops: {error}: ")
    assert sorted(p for p in files.rglob("*") if p.suffix != ".pyc") == before


def test_pickles_with_code_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, (f"open({str(tmp_path / 'pwned')!r}, 'w')",))

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(FormatError):
        load_weights(tmp_path / "evil.pt")
    np.savez(tmp_path / "evil.npz", x=np.array([Evil()], dtype=object), y=np.zeros(1))
    with pytest.raises(FormatError):
        classification.load_npz(tmp_path / "evil.npz")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"x": np.zeros((4, 2))}, FormatError),
        ({"x": np.zeros((4, 2, 2)), "y": np.zeros(4, int)}, UnsupportedShape),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, UnsupportedShape),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, UnsupportedShape),
        ({"x": np.zeros((4, 2)), "y": np.array([0, 1, -1, 0])}, UnsupportedShape),
        ({"x": np.full((4, 2), np.nan), "y": np.zeros(4, int)}, UnsupportedShape),
        ({"x": np.zeros((4, 2), int), "y": np.zeros(4, int)}, UnsupportedShape),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, UnsupportedShape),
    ],
)
def test_arrays_of_the_wrong_kind(
    tmp_path: Path, arrays: dict[str, np.ndarray], error: type[Exception]
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(error):
        classification.load_npz(tmp_path / "d.npz")


def test_npz_is_split_once_or_as_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (50, 1, 2, 2)).astype(np.uint8)
    y = np.arange(50) % 7
    np.savez(tmp_path / "a.npz", x=x, y=y)
    first, second = (
        classification.load_npz(tmp_path / "a.npz"),
        classification.load_npz(tmp_path / "a.npz"),
    )
    assert torch.equal(first.x_test[:], second.x_test[:]) and len(first.x_test) == 10
    both = torch.cat([first.x_train[:], first.x_test[:]]).flatten(1).sort(0).values
    assert torch.equal(both, torch.from_numpy(x / np.float32(255)).flatten(1).sort(0).values)
    assert first.classes == 7
    np.savez(tmp_path / "b.npz", x=x, y=y, x_test=x[:3], y_test=y[:3])
    assert torch.equal(classification.load_npz(tmp_path / "b.npz").y_test, torch.from_numpy(y[:3]))


def test_steps_count_full_batches() -> None:
    assert TrainConfig(epochs=3, rate=1e-3, batch=64).steps(130) == 6
    assert TrainConfig(epochs=3, rate=1e-3, batch=500).steps(130) == 3


def test_isolated_failure_names_the_reason(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(TernaryOpsError, match="without torch: .*FormatError"):
        torch_free_process.run_without_torch(
            tmp_path / "x.safetensors", np.zeros((1, 1), np.float32)
        )


def test_a_network_that_cannot_be_loaded_says_why(files: Path) -> None:
    with pytest.raises(UnsupportedModel, match="KeyError: 'oops'"):
        user_code.load_builder("net.py:broken")

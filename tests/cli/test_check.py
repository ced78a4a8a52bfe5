# SPDX-License-Identifier: Apache-2.0
"""`ternary-ops check`: what compiles, what is missing and where, and the price at given zeros."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.checking import Check
from ternary_ops.cli import main
from ternary_ops.errors import BadConfig
from ternary_ops.program.interpret import simulate
from ternary_ops.program.weight import Weight

NETWORKS = """
import torch
from torch import nn

class Odd(nn.Module):
    def forward(self, x):
        return torch.cummax(x, 3)[0]

def body(*middle):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(),
        *middle, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

def good():
    return body()

def bad():
    return body(Odd(), nn.Conv2d(64, 64, 1), Odd())

def rows():
    layers = nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3)
    return nn.Sequential(*layers)

def nothing():
    return nn.Sequential(nn.ReLU())
"""
SAMPLE = ("--sample", "1,3,16,16")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "net.py"
    path.write_text(NETWORKS, encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> str:
    assert main(["check", *map(str, argv)]) == code
    return capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(run(capsys, code, *argv, "--json"))
    return made


def test_a_network_that_compiles(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = found(capsys, 0, f"{file}:good", *SAMPLE)
    assert made["compiles"] and made["input"] == [1, 3, 16, 16] and not made["missing"]
    shares = [p["zeros"] for p in made["predictions"]]
    sizes = [p["bytes"] for p in made["predictions"]]
    assert shares == [0.0, 0.75, 0.9] and sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[2] and all(p["ms"] > 0 for p in made["predictions"])
    text = run(capsys, 0, f"{file}:good", *SAMPLE, "--zeros", "0.5")
    assert "compiles, all of it" in text and "50%" in text and "90%" not in text


def test_missing_parts_are_grouped_with_their_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = found(capsys, 1, f"{file}:bad", *SAMPLE, "--zeros", "0.9")
    assert not made["compiles"]
    (missing,) = (m for m in made["missing"] if m["operator"] == "cummax()")
    line = next(i for i, text in enumerate(NETWORKS.splitlines(), 1) if "cummax" in text)
    assert missing["count"] == 2 and missing["first"] == f"4 (net.py:{line})"
    assert set(made["islands"]) == {"4", "6"} and made["share"] == 0
    assert made["predictions"][0]["bytes"] > 0 and not made["note"]
    text = run(capsys, 1, f"{file}:bad", *SAMPLE, "--zeros", "0.9")
    assert "does not compile" in text and "cummax()" in text and "PyTorch runs 4, 6: 0.0%" in text


def test_rows_and_programs_are_networks_too(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(capsys, 0, f"{file}:rows")["input"] == [1, 24]
    x = torch.randn(1, 3, 9, 9)
    program = quantized(x)
    program.save(tmp_path / "net.safetensors")
    made = found(capsys, 0, tmp_path / "net.safetensors")
    assert made["input"] == [1, 3, 9, 9] and len(made["predictions"]) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{file}:nothing"], "--sample for"),
        (["{file}:missing"], "no such function"),
        (["{file}:good", "--sample", "1,3,x"], "--sample"),
        (["{file}:good", "--sample", "1,3,0,4"], "at least 1"),
        (["{file}:good", "--zeros", "1.5", *SAMPLE], "zeros"),
        (["nowhere.safetensors"], "nowhere"),
    ],
)
def test_wrong_words_are_named(
    file: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *(word.format(file=file) for word in words)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == "" and len(captured.err.splitlines()) == 1


def quantized(x: Tensor) -> tops.Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 18, 3), nn.ReLU()),
        *(nn.Conv2d(18, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    ).eval()
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.0)))
    tops.calibrate(model, [x])
    return tops.compile(model, x, allow_unfinished=True)


def counted(weight: Weight) -> tuple[int, int]:
    """Empty quads and quads."""
    padded = np.pad(weight.array, ((0, 0),) * 3 + ((0, -weight.shape[3] % 4),))
    lanes = padded.reshape(-1, 4)
    return int((lanes == 0).all(1).sum()), len(lanes)


def test_the_program_that_is_timed_has_exactly_these_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    from ternary_ops import checking

    seen: list[tops.Program] = []

    class Watched(tops.Program):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            seen.append(self)

    x = torch.randn(1, 3, 9, 9)
    program = quantized(x)
    monkeypatch.setattr(checking, "Program", Watched)
    checking._predict(checking._Made(Watched(program.graph, program.sample), None), x, (0.5, 0.8))
    for share, made in zip((0.5, 0.8), seen[1:], strict=True):
        kinds = [w.kind for w in made.graph.weights]
        assert kinds == ["int8", "ternary", "ternary", "int8"]
        for before, after in zip(program.graph.weights, made.graph.weights, strict=True):
            if after.kind == "ternary":
                empty, count = counted(after)
                assert empty == round(share * count)
            else:
                np.testing.assert_array_equal(before.array, after.array)
        y = made(x.numpy())
        np.testing.assert_array_equal(y, simulate(made.graph, x.numpy())[-1])


def test_the_network_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    before = [p.clone() for p in model.parameters()]
    made = tops.check(model.eval(), torch.randn(1, 3, 8, 8), zeros=(0.9,))
    assert isinstance(made, Check) and made.compiles and len(made.predictions) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(BadConfig, match="zeros"):
        tops.check(model, torch.randn(1, 3, 8, 8), zeros=(1.0,))


def test_a_check_does_not_load_the_compiler_of_torch() -> None:
    """It takes a second or two, in every command that imports layers."""
    code = """
import sys, torch, ternary_ops as tops
layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()
tops.check(torch.nn.Sequential(*layers).eval(), torch.randn(1, 3, 8, 8))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).returncode == 0

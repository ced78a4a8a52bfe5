# SPDX-License-Identifier: Apache-2.0
"""The report card of the GPU kernels: what it says, and what it takes for a regression."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels have no machine code", allow_module_level=True)

from ternary_ops.cli import main
from ternary_ops.gpu import cases, devices, report


def good() -> dict[str, Any]:
    return {
        "case": "a", "target": "sm_90", "spill_bytes": 0, "stack_bytes": 0, "trapped": False,
        "tensor_core": "IGMMA", "per_unit": 1.0, "unit": "weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spill_bytes": 4}, "spills 4"),
        ({"stack_bytes": 8}, "stack 8"),
        ({"trapped": True}, "trap"),
        ({"tensor_core": "IMMA"}, "IMMA, was IGMMA"),
        ({"tensor_core": ""}, "no tensor core"),
        ({"per_unit": 1.11}, "1.11 per weight"),
    ],
)
def test_what_got_worse_is_named(change: dict[str, Any], words: str) -> None:
    limits = report.Limits("IGMMA", 1.0)
    assert report.check(good(), limits) == []
    assert report.check(good() | {"per_unit": 1.09}, limits) == []
    (line,) = report.check(good() | change, limits)
    assert words in line and "a on sm_90" in line
    known = report.Limits("IGMMA", 1.0, spill_bytes=4, stack_bytes=8)
    assert report.check(good() | {"spill_bytes": 4, "stack_bytes": 8}, known) == []
    assert report.check(good() | {"spill_bytes": 8}, known)


def test_a_row_has_figures_of_machine_code_and_of_the_model() -> None:
    case = cases.linear(16, 512, 1024, torch.uint8)
    (row,) = report.rows(case, "sm_90")
    assert row["device"] == "H100" and row["kernel"] == "_matmul" and row["tensor_core"] == "IGMMA"
    assert row["widest_load"] == 16 and row["spill_bytes"] == 0 and row["launches"] >= 2
    assert 0 < row["kernel_per_unit"] < row["per_unit"]
    assert row["predicted_us"] > row["roofline_us"] > 0
    assert [r["device"] for r in report.rows(case, "sm_86")] == [""]
    assert {r["device"] for r in report.rows(case, "sm_89")} == {"L4", "4090"}


def test_what_a_target_cannot_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", "3.8.0")
    (row,) = report.rows(cases.linear(16, 512, 1024, torch.float16), "sm_100")
    assert row["note"].startswith("unsupported") and report.check(row, None) == []


@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_convolutions_and_attention_compile_without_spills(name: str) -> None:
    for case in (
        cases.conv2d(1, 64, 16, 64, 3),
        cases.conv2d(1, 128, 16, 64, 3, torch.float16, kept=0.5),
        cases.conv2d(2, 64, 12, 64, 3, w=20, stride=2),
        cases.esa(50, 16, 40, 40),
        cases.hf_attention(50, 16, 40, 40),
        cases.hf_attention(50, 12, 40, 40, layers=6),
        cases.sr_gate(8, 16, 16),
        cases.attention(1, 2, 100, 32),
        cases.layer_norm_codes(40, 96),
    ):
        for row in report.rows(case, name):
            assert report.check(row, None) == []


def test_bench_static(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cases, "all_cases", lambda: [cases.sr_gate(8, 16, 16)])
    monkeypatch.setattr(devices, "TARGETS", {"sm_90": devices.TARGETS["sm_90"]})
    assert main(["bench", "--static", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["target"] == "sm_90" and row["widest_load"] == 16
    assert main(["bench", "--static"]) == 0
    assert "sr_gate" in capsys.readouterr().out

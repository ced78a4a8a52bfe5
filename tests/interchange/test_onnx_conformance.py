"""The conformance cases of ONNX: each loads and is right, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_cases import cases, judged

# Of 2,024 cases of onnx 1.23; earlier versions have fewer. Raise it when more load.
PASSES = 320


def test_every_case_is_right_or_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = judged(tmp_path / "case.onnx")
    counts = ", ".join(f"{found.counts[k]} {k}" for k in ("passes", "refused", "wrong", "unnamed"))
    with capsys.disabled():
        print(f"\nONNX conformance, {len(cases())} cases, each input in turn: {counts}")
    assert not found.faults
    assert found.counts["passes"] >= PASSES

# SPDX-License-Identifier: Apache-2.0
"""The run-book for a GPU, rehearsed without one."""

from __future__ import annotations

import sys

import pytest
from checkout import BENCH

sys.path.append(str(BENCH))

import gpu_device


def test_all_jobs_match(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_device.py", "--rehearse"])
    assert gpu_device.main() == 0
    assert capsys.readouterr().out.count("'match': True") == len(gpu_device.jobs("cpu", True))


def test_without_a_gpu_it_says_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_device.py"])
    monkeypatch.setattr(gpu_device.torch.cuda, "is_available", lambda: False)
    assert gpu_device.main() == 2
    assert "--rehearse" in capsys.readouterr().out

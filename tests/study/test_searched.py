# SPDX-License-Identifier: Apache-2.0
"""A job with a budget: searched for once, trained, saved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ternary_ops.budget import Budget, solving
from ternary_ops.data.classification import Split
from ternary_ops.progress import progress_bars
from ternary_ops.study.compressing import Job, compress
from ternary_ops.train.config import TrainConfig


def build() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )


def test_a_job_that_goes_on_measures_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(60, 3, 8, 8), torch.arange(60) % 3
    course = TrainConfig(epochs=1, rate=3e-3, batch=12)
    output, kept = tmp_path / "net.safetensors", tmp_path / "net.checkpoint"
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if it had been cut off
    for resume in (False, True):
        job = Job(
            *("net", build, Split(x[:48], y[:48], x[48:], y[48:])),
            **{"dense": course, "ternary": course, "threads": 1, "budget": Budget(bytes=2_000)},
            **{"checkpoints": kept, "resume": resume},
        )
        with progress_bars(quiet=True) as quiet:
            made = compress(job, output, quiet)
        assert made is not None and "auto: " in made.plan
        # Its scales and biases are rounded, those of the file that was measured are not.
        assert 1_500 < output.stat().st_size < 2_060
        assert (kept / "search.json").exists()
        monkeypatch.setattr(solving, "trial_at", None)

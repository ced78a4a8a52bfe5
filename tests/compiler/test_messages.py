# SPDX-License-Identifier: Apache-2.0
"""Messages of refused networks: by operator, the cause first, short for any model."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.compiler.problems import Problem, kind_in_words, refusal
from ternary_ops.errors import UnsupportedModel


class Shrink(nn.Module):
    """Two calls without a program form; the sum only reads them."""

    def forward(self, x: Tensor) -> Tensor:
        """The lines that messages name."""
        y = torch.floor(x)
        return y + torch.frac(x)


class Shifted(nn.Conv2d):
    """A subclass with a forward of its own that no table knows."""

    def forward(self, x: Tensor) -> Tensor:
        """A convolution of something else."""
        return super().forward(torch.floor(x))


def refused(model: nn.Module, x: Tensor) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        tops.compile(model.eval(), x)
    return str(caught.value)


def line_of(function: Any, text: str) -> int:
    """Number of the line in this file that has the text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_equal_problems_are_one_line_with_count_place_and_source_line() -> None:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Shrink()) for _ in range(30)]
    message = refused(nn.Sequential(nn.Conv2d(3, 4, 1), *blocks), torch.randn(1, 3, 6, 6))
    floor, frac = (line_of(Shrink.forward, f"torch.{name}") for name in ("floor", "frac"))
    assert "got 60 without:" in message
    reason = "there is no program op for it"
    lines = message.splitlines()[1:3]
    assert lines == [
        f"  floor() (30 times): {reason}; first in 1.1 (test_messages.py:{floor})",
        f"  frac() (30 times): {reason}; first in 1.1 (test_messages.py:{frac});",
    ]
    assert "islands=True" in message and len(message.splitlines()) < 8


def test_reasons_that_differ_in_sizes_alone_are_one_line() -> None:
    reasons = {"1": "its input has shape (1, 4, 6, 6)", "3": "its input has shape (1, 4, 4, 4)"}
    problems = [Problem("LayerNorm", place, "", reason) for place, reason in reasons.items()]
    message = str(refusal(problems, "Conv2d"))
    assert "LayerNorm (2 times)" in message and "; first in 1;" in message.replace("\n", "")


def test_a_subclass_is_called_a_subclass() -> None:
    assert kind_in_words(Shifted(3, 4, 3)) == "Shifted, a subclass of Conv2d"
    assert [kind_in_words(m) for m in (nn.Conv2d(3, 4, 3), Shrink())] == ["Conv2d", "Shrink"]


@pytest.mark.parametrize("kinds", [1, 16, 17, 40])
def test_any_model_gives_at_most_25_lines(kinds: int) -> None:
    problems = [
        Problem(f"kind{k % kinds}()", f"{k}.part", "net.py:7", f"it has size {k}")
        for k in range(3 * kinds)
    ]
    message = str(refusal(problems, "Conv2d"))
    assert len(message.splitlines()) <= 25 and f"got {3 * kinds} without:" in message
    shown = re.findall(r"^  kind\d+\(\) \(3 times\): it has size", message, re.MULTILINE)
    assert len(shown) == min(kinds, 16)
    rest = re.search(r"and (\d+) for (\d+) more reasons", message)
    assert (rest and rest.groups()) == (
        None if kinds <= 16 else (f"{3 * kinds - 48}", f"{kinds - 16}")
    )

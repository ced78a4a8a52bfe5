# SPDX-License-Identifier: Apache-2.0
"""Every Python block of README and docs runs, page by page; what it takes for granted stands here.

A block behind `<!-- not run: REASON -->` is only parsed; one behind `<!-- run with A for B -->` has
text A in place of B, which takes less time.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from checkout import ROOT

import ternary_ops as tops
from ternary_ops import sr
from ternary_ops.models import digits_resnet

Names = dict[str, Any]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n|<!-- run with (?P<change>.+?) -->\n)?"
    r"```python\n(?P<code>.*?)^```",
    re.S | re.M,
)


class Snippet(NamedTuple):
    """A block, the line of its page at which it begins, and why it is not run."""

    code: str
    line: int
    why: str | None


def digits() -> Names:
    """A small network, labelled images, and what a training loop has."""
    loader = [(torch.rand(8, 1, 8, 8), torch.randint(0, 10, (8,))) for _ in range(10)]
    model = digits_resnet(width=8)
    batches = [x for x, _ in loader]
    return {
        **{"model": model, "dense_model": digits_resnet(width=8).eval(), "loader": loader},
        **{"batches": batches, "example": batches[0][:1], "images": batches[1].numpy()},
        "N": len(loader),
    }


def trained() -> Names:
    names = digits()
    return {**names, "optimizer": torch.optim.Adam(names["model"].parameters())}


def upscaling() -> Names:
    """Two steps of training, a checkpoint to read, an image to enlarge."""
    torch.save(sr.EFDN(4, 8).state_dict(), "EFDN_gv.pth")
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    photo = np.random.default_rng(1).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    return {"image": image, "images": [photo], "x": torch.rand(1, 3, 16, 16), "N": 2}


def few_pairs() -> Names:
    """Three photos of one channel: a pair, a small and a large one."""
    rng = np.random.default_rng(0)
    small, large = (rng.random((3, side, side, 1), np.float32) for side in (24, 96))
    return {
        **{"pairs": [(small[0], large[0])], "small_only": small[1:2], "large_only": large[2:]},
        **{"pair_ids": [0], "small_ids": [1], "large_ids": [2], "test_ids": [3]},
    }


SETUP: dict[str, Callable[[], Names]] = {
    "README.md": digits,
    "docs/methods/criteria.md": trained,
    "docs/methods/growth.md": trained,
    "docs/methods/ephemeral.md": dict,
    "docs/methods/reconstruction.md": trained,
    "docs/methods/filters.md": trained,
    "docs/methods/removal.md": trained,
    "docs/methods/schedules.md": trained,
    "docs/methods/search.md": digits,
    "docs/semi.md": few_pairs,
    "docs/monitor.md": digits,
    "docs/super-resolution.md": upscaling,
}


def snippets(page: str) -> list[Snippet]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Snippet(changed(m["code"], m["change"]), text.count("\n", 0, m.start("code")), m["why"])
        for m in BLOCK.finditer(text)
    ]


def changed(code: str, change: str | None) -> str:
    if change is None:
        return code
    new, old = change.split(" for ")
    assert code.count(old) == 1, change
    return code.replace(old, new)


def test_every_page_with_python_is_run() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]
    found = {p.relative_to(ROOT).as_posix() for p in pages if "```python" in p.read_text("utf-8")}
    assert {page for page in found if any(not s.why for s in snippets(page))} == set(SETUP)
    for page in found:
        assert len(snippets(page)) == (ROOT / page).read_text("utf-8").count("```python")


@pytest.mark.parametrize("page", SETUP)
def test_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: Names = {"tops": tops, "torch": torch, **SETUP[page]()}
    for snippet in snippets(page):
        code = ast.parse("\n" * snippet.line + snippet.code, page)
        if snippet.why is None:
            exec(compile(code, page, "exec"), names)

# SPDX-License-Identifier: Apache-2.0
"""README says what is so: its commands are those of .ci/run, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from ternary_ops.cli import _parser

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def block(mark: str) -> str:
    """The fenced block after a marker, as .ci/run finds it."""
    found = re.search(rf"<!-- ci: {mark} -->\n```bash\n(.*?)\n```", README, re.DOTALL)
    assert found, f"README.md has no block {mark}"
    return found.group(1)


def test_two_commands_set_up_demo_and_tests() -> None:
    assert block("setup").splitlines() == [
        "python3 -m venv .venv && .venv/bin/pip install '.[train,test]' "
        "&& .venv/bin/ternary-ops compress"
    ]
    assert block("tests").splitlines() == [".venv/bin/pytest -n 2"]


def test_ci_runs_the_readme_itself() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for mark in ("setup", "tests"):
        assert f'eval "$(readme {mark})"' in script
        done = subprocess.run(
            ["bash", "-c", f". .ci/steps.sh && readme {mark}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == block(mark)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_extras_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = set(_parser()._subparsers._group_actions[0].choices)
    named = set(re.findall(r"ternary-ops ([a-z]+)\b", " ".join(re.findall(r"`[^`]+`", text))))
    for listed in re.findall(r"`ternary-ops ([a-z| ]+)`", text):
        named |= {word.strip() for word in listed.split("|")}
    assert {name for name in named if name} - {"."} <= known
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for group in re.findall(r"'\.\[([a-z,]+)\]'", text):
        for extra in group.split(","):
            assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), extra


def test_public_names_in_readme_exist() -> None:
    import ternary_ops as tops

    names = set(re.findall(r"\btops\.([A-Za-z_]+)", README))
    assert names
    for name in names:
        assert hasattr(tops, name), name


@pytest.mark.parametrize("name", ["compress.py", "sparse_training.py"])
def test_example_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    right = float(re.findall(r"learned: ([\d.]+)%", done.stdout)[0])
    assert right > 90
    assert (tmp_path / "digits.safetensors").stat().st_size < 20_000

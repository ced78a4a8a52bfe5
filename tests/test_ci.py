# SPDX-License-Identifier: Apache-2.0
"""The scripts of .ci: their shared steps stop where they should."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from checkout import ROOT
from machines import HANGS

HEAD = "set -euo pipefail\n. .ci/steps.sh\n"


def bash(code: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["bash", "-c", HEAD + code], cwd=ROOT, capture_output=True, text=True, timeout=HANGS
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("script", ["run", "torch", "steps.sh"])
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / script)], check=True)


def test_a_step_beside_others_stops_at_its_first_failure_and_fails_where_it_is_joined() -> None:
    steps = "good() { echo fine; }\nbad() { echo one; false; echo two; }\n"
    begin = steps + "beside a good\nbeside b bad\necho between\n"
    assert bash(begin + "joined a\njoined b\necho after") == (1, ["between", "fine", "one"])
    kept = 'if joined b > /dev/null; then echo passed; else echo "failed"; fi'
    assert bash(f"{begin}{kept}\njoined a") == (0, ["between", "failed", "fine"])


def test_the_copy_is_a_checkout_of_what_git_would_add(tmp_path: Path) -> None:
    code, lines = bash(f"copy_tree {tmp_path}/copy\ncd {tmp_path}/copy\ngit ls-files")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    wanted = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert code == 0 and sorted(lines) == sorted(wanted.splitlines())
    assert ".ci/steps.sh" in lines and not [name for name in lines if name.startswith("build/")]


def test_a_step_that_passed_is_not_run_again_and_its_commit_is_told(tmp_path: Path) -> None:
    """.ci/torch is cut off, mended and goes on."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "commit").write_text("old\n")
    begin = f"work={tmp_path}\ngood() {{ echo fine; }}\nbad() {{ echo oops; false; }}\n"
    end = 'echo "$(last a)$(where a), $(last b)$(where b), ${failed[*]:-none}"'
    code, lines = bash(f"{begin}once a good\nonce b bad\n{end}")
    assert code == 0 and lines[-1] == "fine, oops, b" and "oops" in lines[:-1]
    (tmp_path / "commit").write_text("new\n")
    code, lines = bash(f"{begin}once a bad\nonce b good\n{end}\nneeded c bad\necho never")
    assert code == 1 and "fine (on old), fine, none" in lines and "never" not in lines

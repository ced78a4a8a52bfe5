# SPDX-License-Identifier: Apache-2.0
"""A small part of tests/fuzz.py, and every file that it ever kept."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fuzz
import pytest
from checkout import DATA

CORPUS = sorted((DATA / "fuzz").glob("*.safetensors"))
REASONS = DATA / "refused.zip"


def test_files_load_and_run_or_are_refused(tmp_path: Path) -> None:
    found = fuzz.in_child(0, 1500, seconds=120.0)
    assert not found["failures"]
    # Both ends are reached: a fuzzer whose every file is refused at the door tests the door alone.
    assert found["outcomes"]["refused"] > 500 and found["outcomes"]["ran"] > 100


def test_a_case_is_the_same_file_every_time() -> None:
    valid = fuzz.seeds()
    assert [fuzz.damaged(n, valid) for n in range(50)] == [
        fuzz.damaged(n, valid) for n in range(50)
    ]


def test_kept_files(tmp_path: Path) -> None:
    for file in CORPUS:
        fuzz.survive(file.read_bytes(), tmp_path / "a.safetensors")


def test_what_was_refused_stays_refused(tmp_path: Path) -> None:
    """One file for each reason that tests/fuzz.py has met."""
    with zipfile.ZipFile(REASONS) as pack:
        names = [name for name in pack.namelist() if name.endswith(".safetensors")]
        assert len(names) > 50
        for name in names:
            said = pack.read(name.replace("safetensors", "txt")).decode()
            assert fuzz.survive(pack.read(name), tmp_path / "a.safetensors") == "refused", said


def test_reasons_are_kept(tmp_path: Path) -> None:
    count = fuzz.keep_reasons(0, 200, tmp_path / "reasons.zip")
    with zipfile.ZipFile(tmp_path / "reasons.zip") as pack:
        assert len(pack.namelist()) == 2 * count > 10


def test_what_kills_a_process_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer itself: a case that ends the process is named, and the others go on."""
    killed = "import os, sys; import fuzz; kill = fuzz.damaged\n"
    killed += "fuzz.damaged = lambda n, v: os.abort() if n == 7 else kill(n, v)\n"
    killed += "sys.argv[0] = fuzz.__file__; sys.exit(fuzz.main())"
    folder = str(Path(fuzz.__file__).parent)
    run = fuzz.subprocess.run

    def child(command: list[str], **options: object) -> object:
        script = f"import sys; sys.path.insert(0, {folder!r}); {killed}"
        return run([command[0], "-c", script, *command[2:]], **options)

    monkeypatch.setattr(fuzz.subprocess, "run", child)
    found = fuzz.in_child(0, 12, seconds=120.0)
    assert [case for case, _ in found["failures"]] == [7]
    assert found["outcomes"]["lost"] == 7 and sum(found["outcomes"].values()) == 11

# SPDX-License-Identifier: Apache-2.0
"""A small part of tests/fuzz.py, and every file that it ever kept."""

from __future__ import annotations

from pathlib import Path

import fuzz
import pytest

CORPUS = sorted((Path(__file__).parent / "data" / "fuzz").glob("*.safetensors"))


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


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_kept_files(file: Path, tmp_path: Path) -> None:
    fuzz.survive(file.read_bytes(), tmp_path / "a.safetensors")


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

# SPDX-License-Identifier: Apache-2.0
"""The folders of csrc/ include one another in one direction, and each header says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
# From the ground up: a folder includes itself and the ones before it. Operators and the program
# that runs them know each other.
LEVELS = (
    ("kernels",),
    ("base",),
    ("isa",),
    ("tensor", "codec"),
    ("weights",),
    ("ops", "program"),
    ("bind",),
)
LEVEL = {folder: i for i, level in enumerate(LEVELS) for folder in level}
FILES = sorted(p for p in SOURCES.rglob("*") if p.suffix in (".cpp", ".h", ".inl"))


def test_every_folder_has_its_level() -> None:
    assert {p.name for p in SOURCES.iterdir() if p.is_dir() and any(p.glob("*.[chi]*"))} == set(
        LEVEL
    )


@pytest.mark.parametrize("folder", LEVEL)
def test_no_folder_includes_a_higher_one(folder: str) -> None:
    upward = [
        f"{path.relative_to(SOURCES)} includes {name}"
        for path in FILES
        if path.parent.name == folder
        for name in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8"))
        if LEVEL[name.split("/")[0]] > LEVEL[folder]
    ]
    assert not upward


# Sources of one instruction set pull every kernel into a namespace of their own.
def test_only_instruction_sets_include_kernels_other_than_their_table() -> None:
    users = {
        path.parent.name
        for path in FILES
        for name in re.findall(r'#include "kernels/([^"]+)"', path.read_text(encoding="utf-8"))
        if name != "table.h"
    }
    assert users == {"kernels", "isa"}


def test_headers_say_what_they_are() -> None:
    silent = [
        str(path.relative_to(SOURCES))
        for path in FILES
        if path.suffix != ".cpp"
        and not path.read_text(encoding="utf-8").splitlines()[1].startswith("// ")
    ]
    assert not silent

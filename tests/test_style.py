# SPDX-License-Identifier: Apache-2.0
"""Functions fit a page and files stay short, but for those named here; ruff counts the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT

LINES, FUNCTION = 400, 60
# File -> why it may be longer.
LONG_FILES: dict[str, str] = {}
# File: function -> why it may be longer.
LONG_FUNCTIONS: dict[str, str] = {}
FOLDERS = ("ternary_ops", "kernels", "csrc", "bench", "tests", "examples")
SUFFIXES = {".py", ".cpp", ".h", ".inl"}


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and "build" not in path.parts:
                yield path


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def too_long(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > FUNCTION:
                yield node.name, length


def test_files_are_short() -> None:
    lengths = {name(path): len(path.read_text("utf-8").splitlines()) for path in sources()}
    assert {file: n for file, n in lengths.items() if n > LINES and file not in LONG_FILES} == {}


def test_functions_fit_a_page() -> None:
    found = {
        f"{name(path)}: {function}": length
        for path in sources()
        if path.suffix == ".py"
        for function, length in too_long(ast.parse(path.read_text("utf-8")))
    }
    assert {key: n for key, n in found.items() if key not in LONG_FUNCTIONS} == {}


@pytest.mark.parametrize(("lines", "found"), [(60, []), (61, [("f", 61)])])
def test_a_long_function_is_seen(lines: int, found: list[tuple[str, int]]) -> None:
    body = "    pass\n" * (lines - 1)
    assert list(too_long(ast.parse("def f():\n" + body))) == found

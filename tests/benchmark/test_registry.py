# SPDX-License-Identifier: Apache-2.0
"""The list of benchmarks is complete, and docs/benchmarks.md and `bench --list` print it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from checkout import BENCH, ROOT

from ternary_ops.benchmark.bench_table import markdown, with_table
from ternary_ops.benchmark.registry import BENCHES
from ternary_ops.cli import main

SCRIPTS = {path.stem for path in BENCH.glob("*.py") if not path.stem.startswith("_")}


def test_every_script_is_in_the_list_and_answers_one_question() -> None:
    listed = [bench.name for bench in BENCHES if " " not in bench.name]
    assert sorted(listed) == sorted(SCRIPTS)
    questions = [bench.question for bench in BENCHES]
    assert len(set(questions)) == len(questions) and all(questions)


def result_files() -> Iterator[str]:
    for path in (BENCH / "results").rglob("*.*"):
        yield path.relative_to(BENCH / "results").as_posix()


def test_every_result_file_has_its_bench_and_every_name_a_file() -> None:
    patterns = {pattern for bench in BENCHES for pattern in bench.results}
    found = {pattern: {p.name for p in (BENCH / "results").glob(pattern)} for pattern in patterns}
    assert all(found.values()), [pattern for pattern, files in found.items() if not files]
    # parents: networks that others start from; random_graphs.txt: of tests/run_graphs.py; torch-*:
    # of .ci/torch.
    others = ("parents/", "random_graphs", "torch-")
    rest = [name for name in result_files() if not name.startswith(others)]
    known = set().union(*found.values())
    assert not [name for name in rest if name.rpartition("/")[2] not in known]


def test_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {extra for bench in BENCHES for extra in bench.extras} <= set(
        project["optional-dependencies"]
    )


def test_the_page_holds_the_table() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    hint = "python -m ternary_ops.benchmark.registry docs/benchmarks.md"
    assert page == with_table(page, BENCHES), hint
    assert markdown(BENCHES) in page, hint


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(bench.command in shown and bench.question in shown for bench in BENCHES)
    assert main(["bench", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["command"] for row in rows] == [bench.command for bench in BENCHES]

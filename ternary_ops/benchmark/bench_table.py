# SPDX-License-Identifier: Apache-2.0
"""One benchmark of the project, and the table of many. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS = ("command", "question", "rivals", "results", "extras")
_MARKERS = ("<!-- benches -->\n", "<!-- /benches -->\n")


@dataclass(frozen=True)
class Bench:
    """One benchmark.

    name: of the script in bench/, or `ternary-ops bench`. command: an example. rivals: other
    engines in the same run. results: files or patterns under bench/results that it wrote. extras:
    optional dependencies of the package that it needs, `pip install '.[train,bench]'`.
    """

    name: str
    question: str
    arguments: str = ""
    rivals: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    extras: tuple[str, ...] = ("train",)

    @property
    def command(self) -> str:
        """As it is typed in a checkout."""
        start = self.name if " " in self.name else f"python bench/{self.name}.py"
        return f"{start} {self.arguments}".rstrip()

    def cells(self) -> list[str]:
        """One row of the table."""
        lists = (self.rivals, self.results, self.extras)
        return [self.command, self.question, *(", ".join(names) for names in lists)]


def markdown(benches: Sequence[Bench]) -> str:
    """The table of docs/benchmarks.md."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for bench in benches:
        cells = [cell.replace("|", "\\|") for cell in bench.cells()]
        results = [f"`{name}`" for name in bench.results]
        cells[0], cells[3] = f"`{cells[0]}`", ", ".join(results)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_table(page: str, benches: Sequence[Bench]) -> str:
    """A page whose text between the two markers is the table."""
    begin, end = map(re.escape, _MARKERS)
    table = markdown(benches)
    return re.sub(f"({begin}).*?({end})", lambda m: m[1] + table + m[2], page, flags=re.DOTALL)

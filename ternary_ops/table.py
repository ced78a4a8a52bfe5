# SPDX-License-Identifier: Apache-2.0
"""Plain text tables, the one way reports and commands print figures. Standard library only."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ternary_ops._atomic import replace_file


@dataclass(frozen=True)
class Table:
    """Rows of ready text under column names.

    The first column and those named in `words` are left-aligned, the rest, figures, right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    words: Sequence[str] = ()

    def __str__(self) -> str:
        """Aligned columns, a rule below the names, notes below the rows."""
        grid = [list(self.columns), *(list(row) for row in self.rows)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = []
        for row in grid:
            cells = [
                text.ljust(width) if self._is_words(i) else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "  ".join("-" * w for w in widths))
        title = [self.title, ""] if self.title else []
        return "\n".join([*title, *lines, *(f"  {note}" for note in self.notes)])

    def _is_words(self, column: int) -> bool:
        return column == 0 or self.columns[column] in self.words

    def show(self) -> None:
        """Print: through rich on a terminal that has it, otherwise as plain text."""
        import sys

        if sys.stdout.isatty():
            try:
                self._show_rich()
                return
            except ImportError:
                pass  # rich is optional; the plain text says the same
        print(self)

    def _show_rich(self) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        view = RichTable(title=self.title or None, title_justify="left", title_style="bold")
        for index, name in enumerate(self.columns):
            view.add_column(
                name, justify="left" if self._is_words(index) else "right", overflow="fold"
            )
        for row in self.rows:
            view.add_row(*(Text(cell) for cell in row))
        console = Console()
        console.print(view)
        for note in self.notes:
            console.print(Text(f"  {note}", style="dim"))


def write_csv(path: str | Path, rows: Sequence[dict[str, object]]) -> None:
    """Write dicts of equal keys as CSV, atomically."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)

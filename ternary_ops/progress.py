# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: bars through rich where it is installed, otherwise a line per stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Who watches: one bar per stage."""

    def stage(self, name: str, steps: int) -> AbstractContextManager[Callable[[], None]]:
        """Enter a stage of `steps`; call what it gives after each."""


class _Lines:
    """A line when a stage begins; nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    @contextmanager
    def stage(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Name the stage."""
        if not self.quiet:
            print(f"{name} ({steps} steps)", file=sys.stderr, flush=True)
        yield lambda: None


class _Bars:
    """One rich bar per stage."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress

    @contextmanager
    def stage(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Add a bar and move it."""
        task = self.progress.add_task(name, total=steps)
        yield lambda: self.progress.advance(task)


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """Bars on a terminal that has rich, lines elsewhere, nothing when `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield _Lines(quiet)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
    except ImportError:
        yield _Lines(quiet)
        return
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as progress:
        yield _Bars(progress)

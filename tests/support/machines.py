# SPDX-License-Identifier: Apache-2.0
"""Instruction sets and thread counts that operators are run on, and the patience of tests."""

from __future__ import annotations

from collections.abc import Iterator

from ternary_ops._native import core

ISAS = core().available_isas()
THREADS = (1, 2, 3, 7)
HANGS = 600  # seconds until a process counts as hung: a busy machine is slow, not wrong


def machines() -> Iterator[str]:
    """Every instruction set with every thread count; yields a label for messages."""
    for isa in ISAS:
        core().set_isa(isa)
        for threads in THREADS:
            core().set_num_threads(threads)
            yield f"{isa}, {threads} threads"

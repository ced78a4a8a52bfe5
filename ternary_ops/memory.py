# SPDX-License-Identifier: Apache-2.0
"""Memory still available to this process."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> float:
    """Bytes that can be had without swapping; infinity where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    return float("inf")

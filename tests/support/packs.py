# SPDX-License-Identifier: Apache-2.0
"""Where the data packs are, for tests that read them and are skipped without."""

from __future__ import annotations

from pathlib import Path

import pytest

from ternary_ops.benchmark.pruned_networks import data_folder

DATA = data_folder() or Path("no data packs")
needs_weights = pytest.mark.skipif(
    not (DATA / "sr_weights").is_dir(), reason="no published weights at hand"
)

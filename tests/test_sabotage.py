# SPDX-License-Identifier: Apache-2.0
"""The faults of tests/sabotage.py, which takes half an hour, still apply to the code as it is."""

from __future__ import annotations

import pytest
import sabotage


@pytest.mark.parametrize("name", sabotage.FAULTS)
def test_fault_applies(name: str) -> None:
    fault = sabotage.FAULTS[name]
    text = (sabotage.ROOT / "csrc" / fault.file).read_text()
    assert sabotage.applied(text, fault) != text

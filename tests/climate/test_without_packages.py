# SPDX-License-Identifier: Apache-2.0
"""Without xarray, dask or PyTorch, what needs them names the extra, and the rest imports."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "absent, use, extra",
    [
        ("xarray", "climate.downscale(None, 'x')", "climate"),
        ("xarray", "opening.open_data(__file__)", "climate"),
        ("torch", "climate.fit", "train"),
    ],
)
def test_a_missing_package_is_named(absent: str, use: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{absent!r}] = None
__file__ = sys.executable
from ternary_ops import climate
from ternary_ops.climate import baselines, downscaler, downscaling, opening, output, plots, scores
climate.Downscaler.load = staticmethod(lambda path: downscaler.Downscaler)
downscaler.Downscaler.inputs = ()
try:
    {use}
except climate_error as error:
    print(error)
""".replace("climate_error", "__import__('ternary_ops').errors.MissingExtra")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"expected {absent}" in done.stdout and f"ternary-ops[{extra}]" in done.stdout

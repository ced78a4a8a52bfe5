# SPDX-License-Identifier: Apache-2.0
"""Everything kernels ask about the machine they are launched on."""

import os
from functools import lru_cache
from typing import NamedTuple

import triton

from ternary_ops.errors import UnsupportedDevice, need, release


class Target(NamedTuple):
    """backend "cuda" or "hip", arch 80, 90, "gfx942" ..., and multiprocessors."""

    backend: str
    arch: int | str
    processors: int

    @property
    def ptx(self) -> bool:
        """Whether inline PTX can be used."""
        return self.backend == "cuda"

    @property
    def most_columns(self) -> int:
        """Of a block of integer products. Of 512 columns of tensor memory, Triton 3.8 gives each of
        a step's four planes sums of its own, and 16 for its weights; others give all of them one.
        """
        apart = self.ptx and self.arch in (100, 103) and release(triton.__version__)[:2] == (3, 8)
        return 64 if apart else 256  # 4 * (64 + 16) <= 512 < 4 * (128 + 16)


INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def target() -> Target:
    """The current device; the interpreter counts as an H100."""
    if INTERPRETED:
        return Target("cuda", 90, 132)
    driver = triton.runtime.driver.active
    found = driver.get_current_target()
    return Target(found.backend, found.arch, _processors(driver, driver.get_current_device()))


@lru_cache
def _processors(driver: object, device: int) -> int:
    properties = driver.utils.get_device_properties(device)  # type: ignore[attr-defined]
    return int(properties["multiprocessor_count"])


def check_compiler(integer: bool, where: Target) -> None:
    """Triton before 3.9 compiles float products for sm_100 to a trap, without an error."""
    old = release(triton.__version__) < (3, 9)
    if not integer and where.ptx and where.arch in (100, 103) and old:
        got, do = f"Triton {triton.__version__}", "Quantize the input, or install Triton 3.9."
        raise UnsupportedDevice(need("Triton 3.9 for float products on sm_100", got, do))

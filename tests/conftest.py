# SPDX-License-Identifier: Apache-2.0
"""What every test runs under: fixed seeds, one torch thread, and poisoned memory.

torch.empty* called from the package gives NaN (or 0xA5 bytes) instead of whatever lay there, so
that a kernel which leaves an output cell unwritten fails on every machine.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import pytest
import torch

# A busy machine is slow, not wrong; CI replays the same examples every time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

_POISON_BYTE = 0xA5

# pytest -n 2 on two cores: more threads, here or in a subprocess, would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def outside_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`python -c` in a subprocess looks into the working directory first: in a checkout it would
    find the package without its native module instead of the installed one.
    """
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory() -> Iterator[None]:
    names = ("empty", "empty_like", "empty_strided")
    originals = {name: getattr(torch, name) for name in names}
    for name, original in originals.items():
        setattr(torch, name, _poisoned(original))
    yield
    for name, original in originals.items():
        setattr(torch, name, original)


def _poisoned(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def empty(*args: object, **kwargs: object) -> torch.Tensor:
        out = original(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("ternary_ops") and out.device.type != "meta":
            out.fill_(float("nan") if out.dtype.is_floating_point else _poison_of(out.dtype))
        return out

    return empty


def _poison_of(dtype: torch.dtype) -> int:
    return 1 if dtype == torch.bool else _POISON_BYTE if dtype == torch.uint8 else -91

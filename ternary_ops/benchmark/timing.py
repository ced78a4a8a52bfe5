# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per image: torch float32, torch int8 and a ternary program, measured in turns."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ternary_ops import runtime

Call = Callable[[], object]

_BURST, _PAUSE = 0.05, 0.005  # seconds
_LEAST = 5  # turns, and timed calls of each engine


def int8_baseline(model: nn.Module, samples: Tensor) -> tuple[nn.Module | None, str]:
    """Quantize the network by PyTorch's own static int8 quantization, calibrated on `samples`.

    Returns (network, engine name), or (None, why it could not be made).
    """
    engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "onednn"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.quantization import get_default_qconfig_mapping
            from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

            torch.backends.quantized.engine = engine
            mapping = get_default_qconfig_mapping(engine)
            ready = prepare_fx(copy.deepcopy(model).eval(), mapping, (samples[:1],))
            with torch.no_grad():
                ready(samples)
            quantized = convert_fx(ready)
            with torch.no_grad():
                quantized(samples[:1])
    except Exception as error:  # a baseline that cannot be built is reported, never hidden or fatal
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return quantized, engine


def torch_call(model: nn.Module, x: Tensor) -> Call:
    """One forward pass."""

    def call() -> object:
        with torch.inference_mode():
            return model(x)

    return call


def interleaved(calls: dict[str, Call], seconds: float = 1.0) -> dict[str, float]:
    """Median milliseconds of each call, in turns, so that a busy moment hits all alike.

    A turn is a burst of calls after a pause: worker threads spin for a while after a call, and on
    few cores those of one engine would slow down the next one.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    turn = min(_BURST, seconds / (_LEAST * len(calls)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < _LEAST:
        for name, call in calls.items():
            time.sleep(_PAUSE)
            call()
            stop = time.perf_counter() + turn
            while True:
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                times[name].append(now - start)
                if now > stop:
                    break
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def per_image(
    baselines: dict[str, nn.Module],
    program: runtime.Program,
    x: Tensor,
    threads: int,
    seconds: float = 1.0,
) -> dict[str, float]:
    """Milliseconds per image of x [N, ...] of each baseline and of "ternary-ops", on `threads`."""
    array = x.contiguous().numpy()
    calls = {name: torch_call(model.eval(), x) for name, model in baselines.items()}
    calls["ternary-ops"] = lambda: program(array)
    with torch_threads(threads), runtime.num_threads(threads):
        measured = interleaved(calls, seconds)
    return {name: ms / len(x) for name, ms in measured.items()}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch.set_num_threads inside a with block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

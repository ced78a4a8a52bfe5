# SPDX-License-Identifier: Apache-2.0
"""Held weights: what trainable layers multiply with, made once while nothing writes into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ternary_ops.nn.ternary import TernaryLayer


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """While the body runs, every quantized layer's codes and scale are made at its first call and
    used again: for many calls without gradients, of a network whose weights stay.
    """
    layers = [module for module in model.modules() if isinstance(module, TernaryLayer)]
    try:
        for layer in layers:
            layer.held = []
        yield
    finally:
        for layer in layers:
            layer.held = None

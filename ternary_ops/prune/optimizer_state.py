# SPDX-License-Identifier: Apache-2.0
"""An optimizer whose parameters lose channels: its state is sliced like them, by value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ternary_ops.errors import UnsupportedModel, check_type, need
from ternary_ops.prune.cutter import Cutter

Replaced = Mapping[nn.Parameter, tuple[nn.Parameter, Cutter]]


def plan_state(optimizer: torch.optim.Optimizer | None, replaced: Replaced) -> Callable[[], None]:
    """A function that makes the optimizer hold the new parameters, with the state of what is left
    of each; the work that can fail is done before.

    Groups, their order and options stay; so do learning rate schedulers. State that has the
    parameter's shape, or size 1 along some of its axes, is sliced; numbers are kept.

    Raises UnsupportedModel where the optimizer holds none of them, or has other state.
    """
    if optimizer is None:
        return lambda: None
    do = "Pass the optimizer itself, of the parameters of this network."
    check_type("optimizer", optimizer, torch.optim.Optimizer, do)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    mine = {old: made for old, made in replaced.items() if old in held}
    if replaced and not mine:
        what = "an optimizer that holds the network's parameters"
        raise UnsupportedModel(need(what, "none of those to cut", do))
    for p in held - mine.keys():  # such as one that keeps the state of all
        for key, value in optimizer.state.get(p, {}).items():
            _sliced(key, value, p, Cutter())
    state = {
        old: {key: _sliced(key, value, old, made[1]) for key, value in optimizer.state[old].items()}
        for old, made in mine.items()
        if old in optimizer.state
    }

    def commit() -> None:
        for group in optimizer.param_groups:
            group["params"][:] = [mine[p][0] if p in mine else p for p in group["params"]]
        for old, made in mine.items():
            optimizer.state.pop(old, None)
            if old in state:
                optimizer.state[made[0]] = state[old]

    return commit


def _sliced(key: str, value: Any, old: nn.Parameter, cut: Cutter) -> Any:
    if not isinstance(value, (Tensor, list, tuple, dict)):
        return value
    if isinstance(value, Tensor):
        if value.numel() == 1 and old.numel() > 1:
            return value
        if value.ndim == old.ndim and all(
            a in (1, b) for a, b in zip(value.shape, old.shape, strict=True)
        ):
            # Averages over an axis have size 1 there: what is cut of the whole is cut of them.
            whole = cut(value.expand(old.shape))
            for axis, size in enumerate(value.shape):
                if size == 1 and old.shape[axis] > 1:
                    whole = whole.narrow(axis, 0, 1)
            return whole.clone(memory_format=torch.preserve_format)
    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise UnsupportedModel(
        need(
            f"state of the optimizer that has the shape of its parameter, {list(old.shape)}",
            f"{key!r}, {got}",
            "Remove channels before this optimizer's first step, or make a new one after.",
        )
    )


def forget(optimizer: torch.optim.Optimizer | None, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of an optimizer, their state too; a group that is empty then goes."""
    if optimizer is None:
        return
    gone = set(parameters)
    for p in gone:
        optimizer.state.pop(p, None)
    for group in optimizer.param_groups:
        group["params"][:] = [p for p in group["params"] if p not in gone]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


class _Stale:
    """Refuses the steps of optimizers that were left with parameters which a network has lost.

    Such a step would change nothing that the network computes with, and say nothing.
    """

    def __init__(self) -> None:
        self._lost: list[ref[nn.Parameter]] = []
        self._handle: Any = None

    def add(self, parameters: list[nn.Parameter]) -> None:
        self._lost += [ref(p) for p in parameters]
        if self._handle is None and self._lost:
            self._handle = register_optimizer_step_pre_hook(self._check)

    def _check(self, optimizer: torch.optim.Optimizer, *step: Any) -> None:
        self._lost = [lost for lost in self._lost if lost() is not None]
        if not self._lost:
            self._handle.remove()
            self._handle = None
            return
        lost = {id(p()) for p in self._lost}
        stale = [p for g in optimizer.param_groups for p in g["params"] if id(p) in lost]
        if stale:
            raise UnsupportedModel(
                need(
                    "an optimizer of the parameters that the network has",
                    f"{len(stale)} that remove_ has replaced, such as one of "
                    f"{list(stale[0].shape)}",
                    "Pass remove_(..., optimizer=), or make a new optimizer after it.",
                )
            )


STALE = _Stale()


class GradientHook:
    """Calls a Pruner's before_step ahead of every step of its optimizer; idle once it is gone."""

    def __init__(self, pruner: Any) -> None:
        self.pruner = ref(pruner)

    def __call__(self, optimizer: torch.optim.Optimizer, given: Any, named: Any) -> None:
        """The hook; given and named: the arguments of optimizer.step, given[0] is the optimizer."""
        pruner = self.pruner()
        if pruner is not None:
            closure = given[1] if len(given) > 1 else named.get("closure")
            pruner.before_step(closure=closure is not None)

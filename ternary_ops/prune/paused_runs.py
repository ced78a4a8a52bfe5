# SPDX-License-Identifier: Apache-2.0
"""Runs of a network, one for each input, that wait at a layer until all of them are there.

What enters a layer can then be looked at for all inputs at once, and the layer be changed before
any run goes on: a whole network costs one run of it for each input. A run is a thread with a copy
of the modules that shares all tensors with them; of all threads one at a time is awake.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ternary_ops.graph.signature import signature_of
from ternary_ops.graph.wrappers import copy_of


class PausedRuns:
    """Runs of `model` on each of the inputs, without gradients, that pause before the layers of
    these names, or behind them. A context: on leaving it the runs end, wherever they are.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], inputs: Sequence[Tensor], behind: bool = False
    ) -> None:
        self._place = {name: i for i, name in enumerate(names)}
        self._runs = [_Run(model, self._place, x, behind) for x in inputs]

    def __enter__(self) -> PausedRuns:
        """Nothing has run yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all runs."""
        for run in self._runs:
            run.end()

    def at(self, name: str) -> list[Tensor] | None:
        """What enters the layer in each run (behind: leaves it), where they all wait then; None
        where one does not come to it, or came to a later layer first. Names come in the order
        given.
        """
        for run in self._runs:
            while run.at is not None and self._place.get(run.at, -1) < self._place[name]:
                run.go_on()
        found = [run.given for run in self._runs if run.at == name]
        return found if len(found) == len(self._runs) else None


def watch(layer: nn.Module, see: Callable[[Tensor], None], behind: bool) -> RemovableHandle:
    """Call `see` with what enters the layer, or leaves it, at each of its calls."""
    if behind:
        return layer.register_forward_hook(lambda module, given, made: see(made))
    return layer.register_forward_pre_hook(lambda module, given: see(given[0]))


class _Ended(BaseException):
    """Leaves the network's code; not an Exception, which that code may catch."""


class _Run:
    """One run. at: the layer at which it waits, "" before the first; None when it is over.
    given: what enters or leaves that layer.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], x: Tensor, behind: bool) -> None:
        self.at: str | None = ""
        self.given = x
        self._ending = False
        self._error: BaseException | None = None
        self._awake, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        own = copy_of(model, sharing=True)
        layers = dict(own.named_modules())
        for name in names:
            watch(layers[name], partial(self._pause, name), behind)
        self._thread = threading.Thread(target=self._work, args=(own, x), daemon=True)

    def _pause(self, name: str, value: Tensor) -> None:
        self.at, self.given = name, value
        self._paused.release()
        self._awake.acquire()
        if self._ending:
            raise _Ended

    def _work(self, model: nn.Module, x: Tensor) -> None:
        try:
            with torch.no_grad():
                signature_of(model).call(model, x)
        except _Ended:
            pass
        except BaseException as error:  # of the network's code: whoever waits raises it
            self._error = error
        self.at = None
        self._paused.release()

    def go_on(self) -> None:
        """Run to the next pause or the end; raises what the network raises."""
        if self.at == "":
            self._thread.start()
        else:
            self._awake.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """End the run."""
        if self.at:
            self._ending = True
            self._awake.release()
        if self._thread.is_alive():
            self._thread.join()

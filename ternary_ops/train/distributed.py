# SPDX-License-Identifier: Apache-2.0
"""One training on several processes, as torchrun starts them; one process is the plain case."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ternary_ops.errors import BadConfig, TernaryOpsError, UnsupportedModel, need


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """True for the process that prints, saves and measures."""
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are the mean over all processes."""
        return DistributedDataParallel(model) if self.world > 1 else model

    def share(self, chosen: Tensor) -> Tensor:
        """This process' part of a batch; all parts are of one size."""
        return chosen[self.rank :: self.world]

    def check(self, batch: int) -> None:
        """Raise BadConfig for a batch that cannot be shared out evenly."""
        if batch % self.world:
            do = f"Pass --batch {max(1, batch // self.world) * self.world}."
            raise BadConfig(
                need(f"a --batch that divides by the {self.world} processes", batch, do)
            )


ALONE = Ranks()


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The processes that torchrun started, joined over gloo; outside torchrun, this one alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or not dist.is_available():
        yield ALONE
        return
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        # A wrapped model left in a cycle would outlive its process group and abort at exit.
        gc.collect()
        dist.destroy_process_group()


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process of the default group, in all of them: plain values,
    sent as JSON. Without a group, what it returns here.

    Every process must call it. Where `make` raises in the first one, the others get its message as
    UnsupportedModel.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return make()
    failed: TernaryOpsError | None = None
    said: dict[str, Any] = {}
    if dist.get_rank() == 0:
        try:
            said = {"made": make()}
        except TernaryOpsError as error:
            failed, said = error, {"failed": str(error)}
    said = json.loads(_broadcast(json.dumps(said).encode()).decode())
    if failed is not None:
        raise failed
    if "failed" in said:
        raise UnsupportedModel(said["failed"])
    return said["made"]


def _broadcast(data: bytes) -> bytes:
    """The first process' bytes, in all of them."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, 0)
    sent = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if dist.get_rank() == 0:
        sent = torch.tensor(list(data), dtype=torch.uint8, device=device)
    dist.broadcast(sent, 0)
    return bytes(sent.tolist())

# SPDX-License-Identifier: Apache-2.0
"""A convex problem on two workers whose gradients do not vanish at the optimum, and a network."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ternary_ops.train.gradient_topk import TopKGradients

SIZE, STEPS, WORKERS = 100, 1800, 2


class Quadratic(NamedTuple):
    """The mean over workers of x A x / 2 - b x -+ c x: each sees +c or -c."""

    a: Tensor
    b: Tensor
    c: Tensor

    @property
    def optimum(self) -> Tensor:
        return torch.linalg.solve(self.a, self.b)

    def gradient(self, x: Tensor, worker: int) -> Tensor:
        return self.a @ x - self.b + (self.c if worker else -self.c)


def quadratic() -> Quadratic:
    random = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=random, dtype=torch.float64))[0]
    a = q @ torch.diag(torch.linspace(1, 4, SIZE, dtype=torch.float64)) @ q.T
    b, c = torch.randn(2, SIZE, generator=random, dtype=torch.float64)
    return Quadratic(a, b, 0.05 * c)


def minimized(problem: Quadratic, feedback: bool) -> Tensor:
    """Gradient descent on the mean of what the two workers send, one entry in a hundred each."""
    x = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    workers = [TopKGradients([x]) for _ in range(WORKERS)]
    for step in range(STEPS):
        total = torch.zeros_like(x)
        for number, worker in enumerate(workers):
            x.grad = problem.gradient(x.detach(), number)
            worker.sparsify_()
            total += x.grad
            if not feedback:
                worker.unsent.clear()
        with torch.no_grad():
            x -= 0.02 * 0.025 ** (step / STEPS) * total / WORKERS
    return x.detach()


def network() -> nn.Module:
    """Several buckets of two sizes: the hook sees them apart."""
    torch.manual_seed(7)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.Tanh()), *(nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5, 3))
    ).double()


def batch(step: int, worker: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(10 * step + worker)
    x = torch.randn(4, 2, 5, 5, generator=random, dtype=torch.float64)
    return x, torch.randint(0, 3, (4,), generator=random)


def gradient(model: nn.Module, step: int, worker: int) -> None:
    x, y = batch(step, worker)
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()


OPTIONS = {"plain": {"fraction": 0.05}, "dgc": {"fraction": 0.02, "momentum": 0.9, "warmup": 6}}
NETWORK_STEPS = 12


def trained(options: dict[str, float], resume_at: int = -1) -> list[Tensor]:
    """The network after some steps: of this rank in a process group, otherwise of two workers."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if dist.is_initialized():
        wrapped = DistributedDataParallel(model, bucket_cap_mb=0.0005)
        TopKGradients(model.parameters(), **options).register(wrapped)
        for step in range(NETWORK_STEPS):
            gradient(wrapped, step, dist.get_rank())
            optimizer.step()
        return [p.detach() for p in model.parameters()]
    workers = [TopKGradients(model.parameters(), **options) for _ in range(WORKERS)]
    for step in range(NETWORK_STEPS):
        if step == resume_at:
            states = [worker.state_dict() for worker in workers]
            workers = [TopKGradients(model.parameters(), **options) for _ in range(WORKERS)]
            for worker, state in zip(workers, states, strict=True):
                worker.load_state_dict(state)
        sent = []
        for number, worker in enumerate(workers):
            gradient(model, step, number)
            worker.sparsify_()
            sent.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for parameter, *parts in zip(model.parameters(), *sent, strict=True):
            parameter.grad = torch.stack(parts).mean(0)
        optimizer.step()
    return [p.detach() for p in model.parameters()]

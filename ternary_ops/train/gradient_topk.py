# SPDX-License-Identifier: Apache-2.0
"""Gradient sparsification: only the largest entries of a gradient are sent and applied.

Error feedback: what is not sent stays here and is added to the next gradient, acc += g, send the
largest of acc, acc -= sent (Stich et al. 2018, arXiv 1809.07599). Momentum correction and warm-up
are those of Deep Gradient Compression (Lin et al. 2017, arXiv 1712.01887), from memory: a
reconstruction. It saves traffic between machines, not arithmetic: the dense gradient is computed
all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ternary_ops.errors import BadConfig, BadWeights, FormatError, need

Sent = tuple[Tensor, Tensor]  # positions int32 and values, of one parameter


class TopKGradients:
    """Keeps `fraction` of each parameter's gradient, at least one entry, with error feedback.

    One process: call sparsify_() between backward() and optimizer.step(). DistributedDataParallel:
    call register(model) once; the ranks then exchange positions and values of what each sends, in
    place of the dense gradients, and all get the mean. Each rank has an accumulator of its own.

    momentum: each entry's momentum is summed before the choice, u = momentum * u + g, acc += u, and
    forgotten where it was sent; the optimizer's own must then be 0.
    warmup: steps in which the fraction falls from 1 along an exponential.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        fraction: float = 0.01,
        *,
        momentum: float = 0.0,
        warmup: int = 0,
    ) -> None:
        """Raises BadConfig unless 0 < fraction <= 1, 0 <= momentum < 1 and warmup >= 0."""
        if not (0 < fraction <= 1 and 0 <= momentum < 1 and warmup >= 0):
            got = f"fraction={fraction}, momentum={momentum}, warmup={warmup}"
            what = "0 < fraction <= 1, 0 <= momentum < 1 and warmup >= 0"
            raise BadConfig(need(what, got, "fraction=0.01 sends one entry in a hundred."))
        self.parameters = list(parameters)
        self.fraction, self.momentum, self.warmup = fraction, momentum, warmup
        self.steps = 0
        self._number = {parameter: i for i, parameter in enumerate(self.parameters)}
        self.unsent: dict[int, Tensor] = {}  # acc, flat, by number of the parameter
        self.velocity: dict[int, Tensor] = {}  # u

    @property
    def fraction_now(self) -> float:
        """The fraction of the next step."""
        if self.steps >= self.warmup:
            return self.fraction
        return float(self.fraction ** (self.steps / self.warmup))

    @torch.no_grad()
    def sparsify_(self) -> None:
        """Replace every gradient by the part of it, and of what is still unsent, that goes now.

        BadWeights, with nothing changed, for a gradient that is not finite.
        """
        given = [(p, p.grad) for p in self.parameters if p.grad is not None]
        for parameter, grad in given:
            self.check(parameter, grad)
        for parameter, grad in given:
            grad.copy_(_dense([self.choose(parameter, grad)], grad))
        self.steps += 1

    def register(self, model: DistributedDataParallel) -> None:
        """Make the ranks exchange gradients through this; once, before training."""
        # It refuses hooks with annotations that are strings, as all of this file are.
        model.register_comm_hook(self, lambda state, bucket: _exchange(state, bucket))

    def choose(self, parameter: nn.Parameter, grad: Tensor) -> Sent:
        """Take up a gradient and return what goes; the rest stays unsent."""
        number = self._number[parameter]
        exact = torch.promote_types(grad.dtype, torch.float32)  # small rests must add up
        update = grad.detach().to(exact).flatten()
        if self.momentum:
            before = self.velocity.get(number)
            update = update if before is None else self.momentum * before + update
            self.velocity[number] = update.clone()
        unsent = self.unsent.get(number)
        unsent = update.clone() if unsent is None else unsent + update
        count = max(1, round(self.fraction_now * unsent.numel()))
        at = unsent.abs().topk(min(count, unsent.numel()), sorted=False).indices
        values = unsent[at].to(grad.dtype)
        unsent[at] -= values  # of half precision a rounding error is left
        self.unsent[number] = unsent
        if self.momentum:
            self.velocity[number][at] = 0.0
        return at.int(), values

    def state_dict(self) -> dict[str, Any]:
        """The step, and what is unsent on this rank."""
        return {
            "steps": self.steps,
            "unsent": {i: t.clone() for i, t in self.unsent.items()},
            "velocity": {i: t.clone() for i, t in self.velocity.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state_dict of the same parameters; else FormatError, nothing changed."""
        sizes = {i: p.numel() for i, p in enumerate(self.parameters)}
        for part in ("unsent", "velocity"):
            if any(sizes.get(i) != t.numel() for i, t in state[part].items()):
                got = "a state of other parameters"
                raise FormatError(need("a state of these parameters", got, "Load it as saved."))
        self.steps = int(state["steps"])
        self.unsent = {
            i: t.to(self.parameters[i].device, copy=True) for i, t in state["unsent"].items()
        }
        self.velocity = {
            i: t.to(self.parameters[i].device, copy=True) for i, t in state["velocity"].items()
        }

    def check(self, parameter: nn.Parameter, grad: Tensor) -> None:
        """Raise BadWeights for a gradient that is not finite: it would stay here for good."""
        if not bool(torch.isfinite(grad.sum())):
            got = f"NaN or infinity in parameter {self._number[parameter]}"
            do = "Nothing has changed. Lower the learning rate, or unscale gradients first."
            raise BadWeights(need("finite gradients to choose from", got, do))


def _dense(parts: list[Sent], like: Tensor) -> Tensor:
    """The mean of what was sent, shaped like a gradient."""
    total = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
    for at, values in parts:
        total.index_add_(0, at.long(), values)
    return (total / len(parts)).view(like.shape)


@torch.no_grad()
def _exchange(state: TopKGradients, bucket: Any) -> torch.futures.Future[Tensor]:
    """The communication hook: all ranks send as many entries, in one message a bucket."""
    grads: list[Tensor] = bucket.gradients()
    parameters: list[nn.Parameter] = bucket.parameters()
    for parameter, grad in zip(parameters, grads, strict=True):
        state.check(parameter, grad)
    chosen = [state.choose(p, g) for p, g in zip(parameters, grads, strict=True)]
    if bucket.is_last():
        state.steps += 1
    counts = [len(values) for _, values in chosen]
    message = torch.cat([t.view(torch.uint8) for pair in zip(*chosen, strict=True) for t in pair])
    received = [torch.empty_like(message) for _ in range(dist.get_world_size())]
    work = dist.all_gather(received, message, async_op=True)

    def finish(_: torch.futures.Future[Any]) -> Tensor:
        parts = []
        for sent in received:
            positions, values = sent[: 4 * sum(counts)], sent[4 * sum(counts) :].clone()
            at = torch.split(positions.view(torch.int32), counts)
            parts.append(
                list(zip(at, torch.split(values.view(grads[0].dtype), counts), strict=True))
            )
        for number, grad in enumerate(grads):
            grad.copy_(_dense([part[number] for part in parts], grad))
        whole: Tensor = bucket.buffer()
        return whole

    done: torch.futures.Future[Tensor] = work.get_future().then(finish)
    return done

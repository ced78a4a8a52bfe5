# SPDX-License-Identifier: Apache-2.0
"""What test_distributed.py runs, alone or once per rank under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from topk_problem import OPTIONS, trained
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel
from ternary_ops.train.distillation import Distillation
from ternary_ops.train.distributed import Ranks
from ternary_ops.train.loop import TrainLoop

STEPS, BATCH = 24, 12


class Case(NamedTuple):
    ternarizer: str = "ptq"
    pattern: str = "1x4"
    criterion: str = "magnitude"
    nested: bool = True
    quantized_decay: float = 0.0
    growth: str | None = None
    stop: int = 0  # cut off after so many steps and go on from a checkpoint


CASES = {
    "quads": Case(),
    "ttq": Case("ttq", "element"),
    "twn, regrowing": Case("twn", "element", nested=False),
    "movement": Case(criterion="movement"),
    "taylor, decaying": Case(criterion="taylor", quantized_decay=0.5),
    "wanda": Case(criterion="wanda", pattern="element"),
    "snip": Case(criterion="snip", pattern="element"),
    "rigl": Case(pattern="element", growth="rigl"),
    "resumed": Case(criterion="taylor", stop=9),
}


def build() -> nn.Module:
    """No BatchNorm: its statistics are those of a rank's part of the batch."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(12, 8, 3, stride=2),
        nn.Flatten(),
        nn.Linear(8 * 4, 5),
    ).double()


class Training:
    """Model, optimizer and pruner of one case, on this rank's share of every batch."""

    def __init__(self, case: Case) -> None:
        self.model = build()
        # Real inputs and float64: sums in another order must not move a rank across a threshold.
        config = tops.TernaryConfig(
            ternarizer=case.ternarizer, zeros=0.6, pattern=case.pattern, activations="float32"
        )
        tops.quantize_(self.model, tops.plan(self.model, config))
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.run: nn.Module = self.model
        if self.world > 1:
            self.run = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        given: dict[str, Any] = {}
        if case.criterion == "snip":
            given = {"batches": [self.batch(STEPS)], "loss": nn.functional.cross_entropy}
        self.pruner = tops.prune.Pruner(
            *(self.model, "one_cycle" if case.growth is None else "constant", STEPS),
            optimizer=self.optimizer,
            criterion=case.criterion,
            nested=case.nested,
            growth=case.growth,
            every=1 if case.growth is None else 2,
            quantized_decay=case.quantized_decay,
            **given,
        )
        self.loss = Distillation(build().eval(), share=0.5)

    def batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's part."""
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(BATCH, 2, 5, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 5, (BATCH,), generator=generator)
        share = BATCH // self.world
        part = slice(self.rank * share, (self.rank + 1) * share)
        return x[part], y[part]

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        self.loss(self.run, *self.batch(number)).backward()
        self.optimizer.step()
        self.pruner.step()

    def parts(self) -> list[Any]:
        return [self.model, self.optimizer, self.pruner]


def train(case: Case, file: Path) -> dict[str, torch.Tensor]:
    """Masks, codes and weights at the end."""
    training = Training(case)
    for number in range(STEPS):
        if case.stop and number == case.stop:
            torch.save([part.state_dict() for part in training.parts()], file)
            training = Training(case)
            states = torch.load(file, weights_only=True)
            for part, state in zip(training.parts(), states, strict=True):
                part.load_state_dict(state)
        training.step(number)
    return dict(training.model.state_dict())


class Odd(nn.Module):
    """Decides on values, so that its layer is in no program."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(12, 8, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if float(x.sum()) > -1e9 else x


def costs() -> tuple[dict[str, float], str]:
    """What every rank gets of what the first one measures, and of what it cannot."""
    config, x = tops.TernaryConfig(zeros=0.6, scope="time"), torch.rand(1, 2, 5, 5)
    model = build().float()
    made = tops.plan(model, config, example=x)
    model[4] = Odd()
    try:
        tops.plan(model, config, example=x)
    except UnsupportedModel as error:
        return {row.name: row.cost.ms for row in made if row.cost is not None}, str(error)
    return {}, ""


def filters() -> dict[str, torch.Tensor]:
    """The filters that SbF keeps, and the network that trains on without the others."""
    model = build()
    sbf = tops.prune.SbF(model, torch.rand(1, 2, 5, 5).double(), 0.5, STEPS, 0.5, round_to=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    optimizer.add_param_group({"params": list(sbf.parameters())})
    joined = dist.is_initialized()
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if joined else Ranks()
    loop = TrainLoop(
        model,
        optimizer,
        torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        STEPS + 4,
        filters=sbf,
        ranks=ranks,
    )

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(BATCH, 2, 5, 5, generator=generator, dtype=torch.float64)
        y = (x[:, 0].mean((1, 2)) > 0).long() + 2 * (x[:, 1, :2].mean((1, 2)) > 0).long()
        mine = ranks.share(torch.arange(BATCH))
        return x[mine], y[mine]

    loop.run(batch, lambda network, xy: nn.functional.cross_entropy(network(xy[0]), xy[1]))
    kept = {f"kept {name}": index for name, index in sbf.state_dict()["kept"].items()}
    return {**kept, **model.state_dict()}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {name: train(case, folder / f"c{rank}.pt") for name, case in CASES.items()}
    found["filters"] = filters()
    found["costs"] = costs()  # type: ignore[assignment]
    for name, options in OPTIONS.items():
        found[f"topk {name}"] = trained(options)  # type: ignore[assignment, arg-type]
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

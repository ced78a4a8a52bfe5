# SPDX-License-Identifier: Apache-2.0
"""Networks of the zoo that lose most at 8 bits while their weights are random, trained a little.

    python bench/zoo_epoch.py [--below 25] [--steps 100] [--only 'timm:reg*'] [--again]

Random weights say little of 8-bit quality: an untrained network's outputs are nearly the same for
every image, and their differences drown in rounding. Each row of zoo.csv whose 8-bit output is
below --below dB is trained here for --steps batches of 32 images of the tinyimagenet100 pack
(TERNARY_OPS_DATA), quantized by the default calibration on 64 of its images, compiled, and compared
with its float network on 512 images that it has not seen: dB, top-1 of both, and how many images
get the same class. A network below 20 dB gets the advice of `report` too. Written to
bench/results/zoo_epoch.csv row by row; an interrupted run goes on.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _cifar import load_tiny_imagenet
from _measure import RESULTS, command_line, commit, read_rows, write_csv
from _zoo_list import Model, build
from _zoo_model import sqnr
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.data.classification import Split
from ternary_ops.graph.signature import pick
from ternary_ops.program.layer_costs import call_ms
from ternary_ops.quantize.fallback import advice
from ternary_ops.study.fit import accuracy
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.loop import TrainLoop
from ternary_ops.train.rates import one_cycle

TABLE = "zoo_epoch.csv"
BATCH, CALIBRATED, COMPARED, ENOUGH = 32, 64, 512, 20.0


class Pictures:
    """Batches of a split at the side that a network takes, in a fixed random order."""

    def __init__(self, split: Split, side: int) -> None:
        self.split, self.side = split, side
        generator = torch.Generator().manual_seed(0)
        self.order = torch.randperm(len(split.y_train), generator=generator)
        self.test = torch.randperm(len(split.y_test), generator=generator)[:COMPARED]

    def _sized(self, x: Tensor) -> Tensor:
        if x.shape[-1] == self.side:
            return x
        return F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a step, from 0."""
        chosen = self.order[step * BATCH : (step + 1) * BATCH]
        return self._sized(self.split.x_train[chosen]), self.split.y_train[chosen]

    def calibration(self) -> Tensor:
        """The last images of the order, which no step takes."""
        return self._sized(self.split.x_train[self.order[-CALIBRATED:]])

    def unseen(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the test part."""
        return self._sized(self.split.x_test[self.test]), self.split.y_test[self.test]


def train(network: nn.Module, pictures: Pictures, steps: int) -> None:
    """AdamW, one cycle of the learning rate."""
    course = TrainConfig(1, 1e-3, BATCH, 0, optimizer="adamw", weight_decay=0.05)
    optimizer = optimizer_for(network, course)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # a network may have convolutions of other ranks
            layer.to(memory_format=torch.channels_last)
    loop = TrainLoop(
        *(network, optimizer, one_cycle(optimizer, course.rate, steps, course.warmup), steps),
        clip=1.0,
        bfloat16=True,
    )
    loop.run(pictures, lambda model, batch: F.cross_entropy(pick(model(batch[0])), batch[1]))
    network.to(memory_format=torch.contiguous_format).eval()


def logits(call: Any, x: Tensor) -> Tensor:
    """Outputs of all images, 32 at a time."""
    return torch.cat([torch.as_tensor(call(part)) for part in torch.split(x, BATCH)])


@torch.no_grad()
def compare(network: nn.Module, pictures: Pictures) -> dict[str, Any]:
    """The 8-bit program beside the float network."""
    x, y = pictures.unseen()
    sample = pictures.calibration()
    wanted = logits(lambda part: pick(network(part)), x)
    eight = copy.deepcopy(network)
    tops.quantize_(eight, tops.plan(eight, tops.TernaryConfig(weights="int8")))
    tops.calibrate(eight, torch.split(sample, BATCH))
    program = tops.compile(eight, x[:1])
    got = logits(lambda part: program(part.numpy()), x)
    decibels = sqnr(got.numpy(), wanted.numpy())
    classes = [value.argmax(1) for value in (wanted, got)]
    advised = advice(eight, sample[:BATCH], ENOUGH) if decibels < ENOUGH else ""
    return {
        "float_top1": round(accuracy(classes[0], y), 2),
        "int8_top1": round(accuracy(classes[1], y), 2),
        "agreement": round(accuracy(*classes), 2),
        "int8_sqnr": decibels,
        "int8_ms": round(call_ms(partial(program, x[:1].numpy())), 3),
        "advice": advised,
    }


def measure(model: Model, split: Split, steps: int) -> dict[str, Any]:
    """The row of one network."""
    torch.manual_seed(0)
    begin = time.process_time()
    network = build(model.source, model.name)
    pictures = Pictures(split, model.size)
    train(network, pictures, steps)
    with runtime.num_threads(1):
        found = compare(network, pictures)
    return {**found, "cpu_s": round(time.process_time() - begin)}


def chosen(rows: list[dict[str, str]], below: float, globs: list[str]) -> list[Mapping[str, str]]:
    """Rows of zoo.csv whose 8 bits are below a limit; fast networks first."""
    found = [
        row
        for row in rows
        if row["int8_sqnr"]
        and float(row["int8_sqnr"]) < below
        and any(fnmatchcase(f"{row['source']}:{row['name']}", glob) for glob in globs)
    ]
    return sorted(found, key=lambda row: float(row["torch_ms"]))


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--below", type=float, default=25.0, help="dB in zoo.csv (default 25)")
    parser.add_argument("--steps", type=int, default=100, help="batches of 32 images (default 100)")
    parser.add_argument("--only", default="*", help="globs of source:model, comma-separated")
    parser.add_argument("--again", action="store_true", help="measure networks that have a row")
    options = parser.parse_args()
    split = load_tiny_imagenet(64)
    made = {(row["source"], row["name"]): row for row in read_rows(RESULTS / TABLE)}
    about = {"steps": options.steps, "commit": commit()}
    for row in chosen(read_rows(RESULTS / "zoo.csv"), options.below, options.only.split(",")):
        key = (row["source"], row["name"])
        if key in made and not options.again:
            continue
        model = Model(*key, int(row["size"]), row["mark"])
        result = {**model._asdict(), "random_sqnr": row["int8_sqnr"]}
        result |= {**measure(model, split, options.steps), **about}
        print({k: v for k, v in result.items() if k not in about}, flush=True)
        made[key] = {k: str(v) for k, v in result.items()}
        write_csv(TABLE, list(made.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

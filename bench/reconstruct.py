# SPDX-License-Identifier: Apache-2.0
"""Pruned at one stroke, without training: by magnitude against `prune.reconstruct_`.

    python bench/reconstruct.py --threads 1
    python bench/reconstruct.py --networks fmen-s-x4 --zeros 0.5 --against ../older

Quads of published networks, float weights. FMEN-S and EFDN x4 (all layers but head and tail), 48
patches of the training images: Set5 PSNR on luma. EfficientNet-Lite0 (all layers but the first and
the depthwise ones), 64 images: percent of 400 others in which the class is that of the dense
network; needs the packages that bench/lite0.py names. --against: the folder of another checkout,
whose `reconstruct_` runs after this one, each in a process of its own (`older_...`). `seconds` is
by the clock, `cpu_seconds` processor time of all threads, which other users of the machine change
less. Writes bench/results/reconstruct.csv; rows of other networks and zeros stay.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lite0
import torch
from _measure import RESULTS, command_line, read_rows, write_csv
from _sr import by_arrays, pairs
from sr_train import RUNS, published, samples
from torch import nn

import ternary_ops as tops
from ternary_ops.sr.training.trainer import validate

NETWORKS = ("fmen-s-x4", "efdn-x4", "efficientnet-lite0")
EDGES = ["head", "tail.0"]
_IMAGES, _SAMPLES = 400, 64


def psnr(network: Any) -> float:
    """Of Set5."""

    def run(x: object) -> object:
        with torch.no_grad():
            return network(torch.as_tensor(x)).numpy()

    images = list(pairs("Set5", network.scale))
    return validate(by_arrays(run, network.input_range), images, network.scale)[0]


class SuperResolution:
    """A published network, scored by PSNR."""

    def __init__(self, name: str) -> None:
        self.network: nn.Module = published(RUNS[f"{name}-int8"]).eval()
        self.samples = samples(self.network)  # type: ignore[arg-type]
        self.skip = EDGES

    def score(self, network: nn.Module) -> float:
        """Decibels."""
        return psnr(network)


class Lite0:
    """EfficientNet-Lite0, scored by agreement with itself."""

    def __init__(self) -> None:
        self.network = lite0.network()
        self.seen = lite0.images(_IMAGES, 0)
        self.samples = list(lite0.images(_SAMPLES, _IMAGES).split(8))
        self.skip = ["_conv_stem", "*depthwise*"]
        self.classes = self._classes(self.network)

    def _classes(self, network: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([network(part).argmax(1) for part in self.seen.split(20)])

    def score(self, network: nn.Module) -> float:
        """Percent."""
        return 100 * float((self._classes(network) == self.classes).double().mean())


def load(name: str) -> Any:
    """A network with its samples and its score."""
    return Lite0() if name == "efficientnet-lite0" else SuperResolution(name)


def child(name: str, zeros: float) -> None:
    """Prune with the package at hand; print the time and the score."""
    made = load(name)
    start, wall = time.process_time(), time.monotonic()
    tops.prune.reconstruct_(made.network, made.samples, zeros, "1x4", skip=made.skip)
    found = {"cpu": time.process_time() - start, "seconds": time.monotonic() - wall}
    print(json.dumps({**found, "score": made.score(made.network)}))


def pruned_by(folder: Path, name: str, zeros: float, threads: int) -> dict[str, float]:
    """What `child` prints with the package of that folder."""
    command = [sys.executable, __file__, "--child", "--networks", name, "--zeros", str(zeros)]
    before = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": f"{folder.resolve()}{os.pathsep}{before}"}
    run = subprocess.run(
        [*command, "--threads", str(threads)], env=environment, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def row_of(name: str, zeros: float, options: Any) -> dict[str, Any]:
    """One network at one number of zeros."""
    made = load(name)
    by_size = copy.deepcopy(made.network)
    tops.prune.Pruner(by_size, "one_shot", 1, zeros, "1x4", skip=made.skip).step()
    here = Path(__file__).resolve().parent.parent
    ours = pruned_by(here, name, zeros, options.threads)
    row = {"network": name, "zeros": zeros, "score": "agreement %"}
    if name != "efficientnet-lite0":
        row["score"] = "PSNR dB"
    row |= {"dense": round(made.score(made.network), 3), "magnitude": round(made.score(by_size), 3)}
    row |= {"reconstructed": round(ours["score"], 3), "seconds": round(ours["seconds"])}
    row |= {"cpu_seconds": round(ours["cpu"], 1)}
    row |= {"threads": options.threads, "older_reconstructed": "", "older_cpu_seconds": ""}
    if options.against:
        older = pruned_by(Path(options.against), name, zeros, options.threads)
        row["older_reconstructed"] = round(older["score"], 3)
        row["older_cpu_seconds"] = round(older["cpu"], 1)
    return row


def main() -> int:
    """Measure and write."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.3, 0.5, 0.75])
    parser.add_argument("--against", help="folder of another checkout")
    parser.add_argument("--child", action="store_true", help="one network, no table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.networks[0], options.zeros[0])
        return 0
    for name in options.networks:
        for zeros in options.zeros:
            row = row_of(name, zeros, options)
            print(row, flush=True)
            key = (name, str(zeros))
            kept = read_rows(RESULTS / "reconstruct.csv")
            kept = [r for r in kept if (r["network"], r["zeros"]) != key]
            write_csv("reconstruct.csv", [*kept, row])
    return 0


if __name__ == "__main__":
    sys.exit(main())

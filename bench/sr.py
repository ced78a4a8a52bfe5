# SPDX-License-Identifier: Apache-2.0
"""Super-resolution networks against torch and OpenVINO, float32 and 8-bit, in one run.

    python bench/sr.py [--networks EFDN_x4,FMEN-S_x4] [--threads 1] [--rounds 15] [--csv sr_1.csv]

One row an engine, for one photo of --width x --height. `eager` is torch in the faster of its two
layouts. `int8` is quantized after training by each engine itself on the same images; rows with the
name of a run are programs that bench/sr_train.py trained. psnr: mean over Set5, luma; loss: what is
missing to the float network. error: largest difference from eager's output, as a share of its
largest value; `match`: float engines 1e-5 at most, 8-bit ones a loss of --loss dB at most. No ratio
without a match of ours; OpenVINO's int8, whose loss stands beside it, is compared with whatever it
loses. flats_off, flats_worst, white: of 729 flat colors how many a program of ours makes more
than two levels wrong, by how much at most, and the border of a white image. peak_mb: memory of our
program beside input and output. of_ceiling: products a second, those of empty quads included, by
what the processor makes from registers in the same type.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from _cifar import folder
from _measure import conclude, interleave, ratio, setup, spread, stopwatch
from _sr import FILES, Array, by_arrays, pairs, training_images

import ternary_ops as tops
from ternary_ops import runtime, sr
from ternary_ops.benchmark import baselines
from ternary_ops.program import peak
from ternary_ops.program.shapes import infer, macs
from ternary_ops.sr.inference.fidelity import check_colors
from ternary_ops.sr.training.trainer import validate

CALIBRATION = 16  # patches of training images that 8-bit ranges come from
EXACT = 1e-5
Run = Callable[[Array], Array]


class Engine(NamedTuple):
    """What runs, and the value that it takes and makes for white."""

    run: Run
    white: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this bench alone."""
    parser.add_argument("--networks", default="EFDN_x4,FMEN-S_x4", help="files of the data pack")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--loss", type=float, default=0.25, help="dB an 8-bit network may lose")


def calibration(shape: torch.Size, white: float) -> torch.Tensor:
    """Corners [16, 3, H, W] of training images as high and wide as x; photos on end are laid."""
    found = []
    for image in training_images()[:: 200 // CALIBRATION][:CALIBRATION]:
        laid = image if image.shape[1] > image.shape[0] else image.transpose(1, 0, 2)
        missing = [max(0, side - had) for side, had in zip(shape[2:], laid.shape, strict=False)]
        filled = np.pad(laid, ((0, missing[0]), (0, missing[1]), (0, 0)), "reflect")
        found.append(np.moveaxis(filled[: shape[2], : shape[3]], 2, 0))
    return torch.from_numpy(np.stack(found).astype(np.float32)) * (white / 255)


def eager(network: sr.SRNetwork, layout: torch.memory_format) -> Run:
    """Torch in one of its layouts."""
    held = copy.deepcopy(network).to(memory_format=layout)

    def run(x: Array) -> Array:
        with torch.inference_mode():
            y: Array = held(torch.from_numpy(x).to(memory_format=layout)).numpy()
        return y

    return run


def int8(network: sr.SRNetwork, samples: torch.Tensor) -> runtime.Program:
    """Our program of dense 8-bit layers, quantized after training."""
    quantized = copy.deepcopy(network)
    tops.quantize.equalize_(quantized, [samples])
    tops.quantize_(quantized, tops.plan(quantized, tops.TernaryConfig("int8")))
    tops.calibrate(quantized, [samples])
    return sr.to_program(quantized)


def engines(
    name: str, network: sr.SRNetwork, x: torch.Tensor, threads: int
) -> tuple[dict[str, Engine], dict[str, Engine]]:
    """Every engine for x, and for images of any size; ours as `sr.to_program` makes them."""
    white = network.input_range
    samples = calibration(x.shape, white)
    with torch.inference_mode():
        eagers = {
            "eager NCHW": Engine(eager(network, torch.contiguous_format), white),
            "eager NHWC": Engine(eager(network, torch.channels_last), white),
        }
    programs = {"float32": sr.to_program(network), "int8": int8(network, samples)}
    for file in sorted(FILES.glob(f"{name.replace('_', '-').lower()}-*.safetensors")):
        programs[file.stem] = runtime.load(file)
    ours = {key: Engine(program, 1.0) for key, program in programs.items()}
    fixed, any_size = {**eagers, **ours}, {"eager NCHW": eagers["eager NCHW"], **ours}
    for kind, graph in baselines.openvino_graphs(network, x, samples).items():
        fixed[f"openvino {kind}"] = Engine(baselines.openvino_run(graph, threads), white)
        free = graph.clone()
        free.reshape([1, 3, -1, -1])
        any_size[f"openvino {kind}"] = Engine(baselines.openvino_run(free, threads), white)
    return fixed, any_size


def quality(engine: Engine, scale: int) -> float:
    """PSNR over Set5."""
    images = list(pairs("Set5", scale))
    return validate(by_arrays(engine.run, engine.white), images, scale)[0]


def products(program: Any, options: Any) -> int:
    """Of one image, those of empty quads included."""
    graph = program.graph
    return sum(macs(graph, infer(graph, 1, options.height, options.width)))


def measure(name: str, options: Any) -> list[dict[str, object]]:
    """The rows of one network."""
    network = sr.load(folder() / "sr_weights" / f"{name}.npz")
    white = network.input_range
    shape = torch.Size((1, 3, options.height, options.width))
    x = calibration(shape, white)[:1]
    fixed, any_size = engines(name, network, x, options.threads)
    inputs = {key: x.numpy() * np.float32(e.white / white) for key, e in fixed.items()}
    wanted = fixed["eager NCHW"].run(inputs["eager NCHW"]) / white
    float_psnr = quality(any_size["eager NCHW"], network.scale)
    timed = {key: stopwatch(partial(e.run, inputs[key])) for key, e in fixed.items()}
    times = interleave(timed, options.rounds)
    best = min(("eager NCHW", "eager NHWC"), key=lambda key: spread(times[key])[0])
    limits = peak.measure()
    all_products = products(fixed["float32"].run, options)
    rows, matches = [], {}
    for key, (run, own_white) in fixed.items():
        is_float = key.startswith("eager") or key.endswith(("float32", "fp32"))
        made = run(inputs[key]) / own_white
        error = float(np.abs(made - wanted).max() / np.abs(wanted).max())
        psnr = float_psnr if key.startswith("eager") else quality(any_size[key], network.scale)
        matches[key] = error <= EXACT if is_float else float_psnr - psnr <= options.loss
        ms, low, high = spread(times[key])
        row: dict[str, object] = {"network": name, "width": options.width, "height": options.height}
        row |= {"threads": options.threads, "engine": key, "match": matches[key]}
        row |= {"ms": round(ms, 2), "ms_p20": round(low, 2), "ms_p80": round(high, 2)}
        row |= {
            "psnr": round(psnr, 3),
            "loss": round(float_psnr - psnr, 3),
            "error": f"{error:.1e}",
        }
        rate = limits.float_gmac_s if is_float else limits.int8_gmac_s
        held = isinstance(run, runtime.Program)
        count = products(run, options) if held else all_products
        row["of_ceiling"] = round(count / ms / 1e6 / rate / options.threads, 2)
        kept = check_colors(run, network.scale, side=9, others=3) if held else None
        row["flats_off"] = f"{kept.flats.off} of {kept.flats.count}" if kept else ""
        row["flats_worst"], row["white"] = (kept.flats.worst, kept.white) if kept else ("", "")
        held_bytes = run.peak_bytes(tuple(x.shape)) if isinstance(run, runtime.Program) else None
        row["peak_mb"] = "" if held_bytes is None else round(held_bytes / 1e6, 1)
        rows.append(row)
    for row in rows:
        for column, rival in (
            ("eager", best),
            ("fp32", "openvino fp32"),
            ("int8", "openvino int8"),
        ):
            proven = matches[str(row["engine"])] and (column == "int8" or matches[rival])
            faster = round(ratio(times[rival], times[str(row["engine"])]), 2)
            row[f"faster_than_{column}"] = faster if proven else ""
    return rows


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=15, more=add_options)
    rows: list[dict[str, object]] = []
    for name in options.networks.split(","):
        for row in measure(name, options):
            rows.append(row | about)
            print(*(f"{key} {value}" for key, value in row.items()), flush=True)
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())

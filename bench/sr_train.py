# SPDX-License-Identifier: Apache-2.0
"""Super-resolution networks in 8-bit and ternary quads, fine-tuned from published float ones.

    python bench/sr_train.py list
    python bench/sr_train.py train fmen-s-x4-int8quads75 --threads 1
    python bench/sr_train.py evaluate fmen-s-x4-int8quads75
    python bench/sr_train.py bundle             # what the package ships, from bench/results/sr
    python bench/sr_train.py evaluate efdn-x2 efdn-x4   # that, colors and borders too

Trains on the 200 training images of BSDS500, resumable (--folder). A run ends as a program in
bench/results/sr and as a row of bench/results/sr_quality.csv: PSNR and SSIM on luma of Set5, Set14
and BSD100, from the program file alone, beside those of the float network it comes from.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _cifar import folder
from _experiment import Experiment, keep_row
from _graphics import drawings
from _measure import command_line
from _sr import FILES, SETS, by_arrays, pairs, training_images
from _trunk import narrowed

import ternary_ops as tops
from ternary_ops import runtime, sr
from ternary_ops.sr.inference.fidelity import check_colors
from ternary_ops.sr.inference.pretrained import facts
from ternary_ops.sr.training.patches import reduced
from ternary_ops.sr.training.trainer import validate
from ternary_ops.train.checkpoint import Checkpoint

TABLE = "sr_quality.csv"
BUNDLED = "int8"  # the kind of the package's own models
KEPT = {2: (0.05, 0.35), 4: (0.2, 0.35)}  # chroma and rounding with which no flat color is off


@dataclass(frozen=True)
class Run(Experiment[sr.SRTrainConfig]):
    """start: published file, which teaches too. config: of all but head and tail, which are dense
    8-bit. fine: layers that read uint11. channels: what an FMEN's trunk keeps.
    """

    fine: tuple[str, ...] = ()
    channels: int | None = None


def _quads(weights: str, zeros: float) -> tops.TernaryConfig:
    return tops.TernaryConfig(weights, zeros=zeros, pattern="1x4")


# By the teacher's image alone: photos of another kind than the teacher's pull away from it.
_LONG = sr.SRTrainConfig(
    steps=8000, rate=1e-3, batch=16, patch=32, share=1.0, stages=0.02, bfloat16=True
)
_TAUGHT = dataclasses.replace(_LONG, steps=3000)
# Eight bits lose less than bfloat16 would hide.
_SHORT = dataclasses.replace(_LONG, steps=1500, rate=3e-4, bfloat16=False)
_TERNARY = dataclasses.replace(_LONG, steps=5000, rate=5e-4)
_LIST = [
    # Rounding costs most in what the last layers read.
    Run(
        *("fmen-s-x4-int8", "FMEN-S_x4.npz", tops.TernaryConfig("int8")),
        dataclasses.replace(_SHORT, steps=5000),
        fine=("tail.0",),
    ),
    Run(
        *("fmen-s-x4-int8-fine", "FMEN-S_x4.npz", tops.TernaryConfig("int8")),
        dataclasses.replace(_SHORT, steps=5000),
        fine=("warmup.1.squeeze", "HFABs.3.squeeze", "lr_conv", "tail.0"),
    ),
    # Fifty channels fill thirteen quads to 96 %, forty-eight fill twelve.
    Run(
        *("fmen-s-x4-int8-48", "FMEN-S_x4.npz", tops.TernaryConfig("int8")),
        dataclasses.replace(_SHORT, steps=5000, stages=0.0),
        fine=("warmup.1.squeeze", "HFABs.3.squeeze", "lr_conv", "tail.0"),
        channels=48,
    ),
    Run(
        *("fmen-s-x4-int8-32", "FMEN-S_x4.npz", tops.TernaryConfig("int8")),
        dataclasses.replace(_LONG, steps=5000, stages=0.0, bfloat16=False),
        fine=("lr_conv", "tail.0"),
        channels=32,
    ),
    Run("efdn-x4-int8", "EFDN_x4.npz", tops.TernaryConfig("int8"), _SHORT, fine=("tail.0",)),
    Run("efdn-x2-int8", "EFDN_x2.npz", tops.TernaryConfig("int8"), _SHORT, fine=("tail.0",)),
    Run(
        *("efdn-x4-int8-fine", "EFDN_x4.npz", tops.TernaryConfig("int8"), _SHORT),
        fine=("local_fuse.2", "tail.0"),
    ),
    Run("fmen-s-x4-int8quads75", "FMEN-S_x4.npz", _quads("int8", 0.75), _LONG),
    Run("fmen-s-x4-int8quads85", "FMEN-S_x4.npz", _quads("int8", 0.85), _TAUGHT),
    Run("fmen-s-x4-quads60", "FMEN-S_x4.npz", _quads("ternary", 0.6), _TERNARY),
    Run(
        *("efdn-x4-int8quads75", "EFDN_x4.npz", _quads("int8", 0.75)),
        dataclasses.replace(_LONG, bfloat16=False),
    ),
    Run("efdn-x4-int8quads85", "EFDN_x4.npz", _quads("int8", 0.85), _TAUGHT),
    Run("efdn-x2-int8quads75", "EFDN_x2.npz", _quads("int8", 0.75), _TAUGHT),
]
RUNS = {run.name: run for run in _LIST}


def published(run: Run) -> sr.SRNetwork:
    """The published float network. FMEN's weights are brought to the size of other networks', which
    changes no digit of what it makes: images of 0..255 and maps of up to 2e7 leave weights of 1e-6,
    which no optimizer with one rate for all leaves alone.
    """
    network = sr.load(folder() / "sr_weights" / run.start)
    if isinstance(network, sr.FMEN):
        first = sr.Patches(training_images()[:8], network.scale, 64).batch(0, 8, 1)[0]
        sr.to_unit_range_(network)
        sr.balance_(network, first * network.input_range, most=2.0)
    return network


def dense(run: Run, channels: int | None = None) -> sr.SRNetwork:
    """The same, its channels scaled to suit 8 bits; with fewer of them, if so asked."""
    network = published(run)
    images = samples(network)
    if channels is not None:
        network = narrowed(network, channels, images[0])
    tops.quantize.equalize_(network, images)
    return network


def varied() -> list[Any]:
    """The training images, and half as large: with more detail to a pixel, as small photos have."""
    images = training_images()
    return images + [reduced(image, 2) for image in images]


def samples(network: sr.SRNetwork) -> list[torch.Tensor]:
    """48 patches of the training images."""
    patches = sr.Patches(training_images(), network.scale, 48)
    return [patches.batch(i, 8, 1)[0] * network.input_range for i in range(6)]


def start(run: Run) -> sr.SRNetwork:
    """The network to train, quantized."""
    network = dense(run, run.channels)
    rules = {"tail.0": tops.TernaryConfig("int8", zeros=0.0)}
    rules |= {name: tops.TernaryConfig("int8", activations="uint11") for name in run.fine}
    tops.quantize_(network, tops.plan(network, run.config, rules=rules))
    return network


def reconstruct(network: sr.SRNetwork, **options: Any) -> None:
    """Prune it in place, from 48 patches of the training images, to its plan's zeros if any."""
    tops.prune.reconstruct_(network, samples(network), **options)


def train(run: Run, runs: Path) -> sr.SRNetwork:
    """Train, or go on, or read what was trained."""
    network = start(run)
    checkpoint = Checkpoint(runs / f"{run.name}.checkpoint", {"run": run.name})
    if run.config.zeros and not checkpoint.file.exists():
        reconstruct(network)
    patches = sr.Patches(varied(), network.scale, run.course.patch)
    optimizer = torch.optim.Adam(network.parameters(), run.course.rate, (0.9, 0.99))
    pruner = None
    if run.config.zeros:  # before calibration: it sets the layers' phase
        pruner = tops.prune.Pruner(network, total_steps=run.course.steps, optimizer=optimizer)
    # Activations are 8-bit from the first step on, and their ranges are learned.
    tops.calibrate(network, samples(network))
    sr.train(
        *(network, patches, run.course),
        **{"teacher": dense(run), "pruner": pruner, "optimizer": optimizer},
        checkpoint=checkpoint,
        on_step=watcher(run),
    )
    return network


def watcher(run: Run) -> Callable[[], None]:
    """A line after each fiftieth of the run."""
    state = {"step": 0, "start": time.monotonic()}

    def on_step() -> None:
        state["step"] += 1
        if state["step"] % max(1, run.course.steps // 50) == 0:
            seconds = time.monotonic() - state["start"]
            print(f"{run.name} {state['step']}/{run.course.steps} {seconds:.0f} s", flush=True)

    return on_step


def finish(run: Run, network: sr.SRNetwork) -> dict[str, Any]:
    """The row of a trained run, judged from its file."""
    scale = network.scale
    theirs = by_arrays(sr.to_program(published(run)), 1.0)
    program = sr.to_program(network).rounded()
    FILES.mkdir(exist_ok=True, parents=True)
    file = FILES / f"{run.name}.safetensors"
    program.save(file)
    ours = by_arrays(runtime.load(file), 1.0)
    row: dict[str, Any] = {"run": run.name, "scale": scale, "weights": run.config.weights}
    row |= {"zeros": run.config.zeros, "steps": run.course.steps, "bytes": file.stat().st_size}
    for name in SETS:
        images = list(pairs(name, scale))
        psnr, ssim = validate(ours, images, scale)
        float_psnr, float_ssim = validate(theirs, images, scale)
        row |= {f"{name}_psnr": round(psnr, 3), f"{name}_ssim": round(ssim, 4)}
        row |= {
            f"{name}_float_psnr": round(float_psnr, 3),
            f"{name}_loss": round(float_psnr - psnr, 3),
        }
        row[f"{name}_float_ssim"] = round(float_ssim, 4)
    return row


def bundle() -> None:
    """Write the package's own models: trained programs that keep colors."""
    for scale, name in sr.MODELS.items():
        trained = runtime.load(FILES / f"{name}-{BUNDLED}.safetensors")
        program = sr.keep_colors(trained, *KEPT[scale])
        program.save(Path(sr.__file__).parent / "weights" / f"{name}.safetensors")


def evaluate(name: str) -> None:
    """Print what a run or one of the package's own models makes of photos and of graphics."""
    own = name in sr.MODELS.values()
    program = sr.open_model(name) if own else runtime.load(FILES / f"{name}.safetensors")
    if not isinstance(program, runtime.Program):
        raise SystemExit(f"{name} is no program")
    scale = facts(program).scale
    for images in SETS:
        psnr, ssim = validate(by_arrays(program, 1.0), list(pairs(images, scale)), scale)
        print(f"{name:30} {images:7} {psnr:.3f} dB {ssim:.4f}", flush=True)
    for kind, drawn in drawings(scale).items():
        psnr, ssim = validate(by_arrays(program, 1.0), drawn, scale)
        print(f"{name:30} {kind:7} {psnr:.3f} dB {ssim:.4f}", flush=True)
    for check, found in dataclasses.asdict(check_colors(program, scale)).items():
        print(f"{name:30} {check:9} {found}", flush=True)


def main() -> int:
    """Run the command."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("command", choices=("list", "train", "evaluate", "bundle"))
    parser.add_argument("names", nargs="*", help="runs, as `list` prints them")
    parser.add_argument("--folder", type=Path, default=Path("bench/runs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "bundle":
        bundle()
        return 0
    if options.command == "evaluate":
        for name in options.names:
            evaluate(name)
        return 0
    for run in RUNS.values() if options.command == "list" else map(RUNS.__getitem__, options.names):
        if options.command == "list":
            print(f"{run.name:30} {run.course.steps} steps from {run.start}")
        else:
            row = finish(run, train(run, options.folder))
            keep_row(TABLE, row, RUNS)
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

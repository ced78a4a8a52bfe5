# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels on a GPU: checked against the CPU operators, then timed. One command, minutes.

    pip install '.[gpu]'
    python bench/gpu_device.py                  # writes bench/results/gpu_device.csv
    TRITON_INTERPRET=1 python bench/gpu_device.py --rehearse    # the checks, small, without a GPU

Rivals: torch in float16 (F.linear), torch._int_mm on int8 weights, PyTorch's own operators for
attention, and gemlite's 2-bit layer where it is installed. Times are medians of triton.testing's
do_bench, which empties the L2 cache before each run. match: integers bit for bit, floats within
2e-3 of the CPU's; without it no time is printed. predicted_us and roofline_us: ternary_ops/gpu.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measure import command_line, conclude
from torch import Tensor

from ternary_ops import ops
from ternary_ops.layout import codes as layout
from ternary_ops.ops._attention import composed_esa, composed_hf

CLOSE = 2e-3
Run = Callable[[], Any]


@dataclass
class Job:
    """What is computed on the device, what the CPU makes of it, and who else can."""

    name: str
    ours: Run
    wanted: Run
    exact: bool
    rivals: dict[str, Run] = field(default_factory=dict)


def call(device: str, op: str, *args: Any, **kwargs: Any) -> Tensor:
    """torch.ops.ternary_ops.<op>; in a rehearsal what the dispatcher would run on a GPU."""
    overload = getattr(torch.ops.ternary_ops, op).default
    if device != "cpu":
        made: Tensor = overload(*args, **kwargs)
        return made
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    made = overload.redispatch(keys, *args, **kwargs)
    return made


def linear(device: str, m: int, n: int, k: int, dtype: torch.dtype) -> Job:
    """Ternary weights; x uint8, or floats."""
    weights = torch.randint(-1, 2, (n, k), dtype=torch.int8)
    codes = torch.from_numpy(layout.pack_codes(weights.numpy()))
    scale, bias = torch.rand(n) * 0.05, torch.randn(n)
    integer = dtype == torch.uint8
    x = torch.randint(0, 256, (m, k), dtype=dtype) if integer else torch.randn(m, k).to(dtype)
    params: dict[str, Any] = {"x_scale": 0.03, "x_zero_point": 77} if integer else {}
    there = [t.to(device) for t in (x, codes, scale, bias)]
    packed = call(device, "prepack", there[1], "dense", k, 1, not integer)
    job = Job(
        f"linear {m}x{k} @ {k}x{n} {'int8' if integer else str(dtype)[6:]}",
        lambda: call(device, "linear", *there, **params, packed=packed),
        lambda: ops.linear(x, codes, scale, bias, **params),
        integer,
    )
    if device != "cpu":
        half = torch.randn(m, k, device=device, dtype=torch.float16)
        dense = weights.to(device, torch.float16)
        job.rivals["torch float16"] = lambda: F.linear(half, dense)
        if integer and m > 16:
            signed, eight = (there[0].to(torch.int16) - 128).to(torch.int8), weights.to(device).T
            job.rivals["torch int8"] = lambda: torch._int_mm(signed, eight)
        if importlib.util.find_spec("gemlite"):
            job.rivals["gemlite"] = gemlite(weights.to(device), half)
    return job


def conv2d(device: str, n: int, c: int, h: int, kept: float, dtype: torch.dtype) -> Job:
    """Ternary 3 x 3, C to C; kept < 1: so many blocks of a tap, 64 channels and 64 rows, sparse."""
    weights = torch.randint(-1, 2, (c, 3, 3, c), dtype=torch.int8)
    blocks = (torch.rand(-(-c // 64), 3, 3, -(-c // 64)) < kept).to(torch.int8)
    weights *= blocks.repeat_interleave(64, 0)[:c].repeat_interleave(64, 3)[..., :c]
    codes = torch.from_numpy(layout.pack_codes(weights.numpy()))
    scale, bias = torch.rand(c) * 0.02, torch.randn(c)
    integer = dtype == torch.uint8
    x = torch.randn(n, c, h, h).to(dtype)
    params: dict[str, Any] = {}
    if integer:
        x = torch.randint(0, 256, (n, c, h, h), dtype=dtype)
        params = {"x_scale": 0.03, "x_zero_point": 77, "y_scale": 0.1, "y_zero_point": 120}
    kind = "conv2d" if kept == 1.0 else "sparse_conv2d"
    form = "dense" if kept == 1.0 else "sparse"
    there = [t.to(device) for t in (x, codes, scale, bias)]
    packed = call(device, "prepack", there[1], form, c, 1, not integer)
    rest = ([1, 1], [1, 1], [1, 1], 1)
    job = Job(
        f"{kind} {n}x{c}x{h}x{h}, 3x3 {'int8' if integer else str(dtype)[6:]}",
        lambda: call(device, kind, *there, *rest, **params, packed=packed),
        lambda: getattr(ops, kind)(x, codes, scale, bias, *rest, **params),
        integer,
    )
    if device != "cpu":
        half = torch.randn(n, c, h, h, device=device, dtype=torch.float16)
        half = half.contiguous(memory_format=torch.channels_last)
        dense = weights.permute(0, 3, 1, 2).to(device, torch.float16)
        dense = dense.contiguous(memory_format=torch.channels_last)
        job.rivals["torch float16"] = lambda: F.conv2d(half, dense, padding=1)
    return job


def gemlite(weights: Tensor, x: Tensor) -> Run:
    """Its 2-bit layer for the same weights."""
    from gemlite.helper import A16W158_INT

    layer = A16W158_INT(device=weights.device).from_weights(weights, torch.ones(1, 1).to(x))
    return lambda: layer(x)


def attention(device: str, kind: str, c: int, f: int, h: int, w: int) -> Job:
    """ESA of EFDN or HFAB of FMEN-S, float16, beside PyTorch's own operators."""
    shapes = [(f, c, 1), (f, f, 1), *[(f, f, 3)] * 4, (c, f, 1)]
    if kind == "hf_attention":
        shapes = [(f, c, 3), (f, f, 3), (f, f, 3), (c, f, 3)]
    weights = [torch.randn(o, i, s, s) / (i * s * s) ** 0.5 for o, i, s in shapes]
    biases = [torch.randn(len(weight)) for weight in weights]
    x = torch.randn(1, c, h, w).half()
    there = [x.to(device), [t.to(device) for t in weights], [t.to(device) for t in biases]]
    rest = [[0.1, 0.1, 1.0]] if kind == "hf_attention" else []
    composed: Any = composed_hf if rest else composed_esa
    job = Job(
        f"{kind} {c}, {f}, {h}x{w} float16",
        lambda: call(device, kind, *there, *rest),
        lambda: composed(x.float(), weights, biases, *rest),
        exact=False,
    )
    if device != "cpu":
        job.rivals["torch float16"] = lambda: composed(*there, *rest)
    return job


def jobs(device: str, small: bool) -> list[Job]:
    """All of them."""
    n = k = 520 if small else 4096
    sizes = (1, 5, 40) if small else (1, 16, 512)
    dtypes = (torch.uint8, torch.float16, torch.bfloat16)
    found = [linear(device, m, n, k, dtype) for m in sizes for dtype in dtypes]
    for kept in (1.0, 0.25):
        for dtype in (torch.uint8, torch.float16):
            shapes = [(1, 70, 9)] if small else [(32, 64, 56), (32, 128, 28), (32, 256, 14)]
            found += [conv2d(device, *shape, kept, dtype) for shape in shapes]
    size = (17, 40) if small else (720, 1280)
    found += [attention(device, kind, 50, 16, *size) for kind in ("esa", "hf_attention")]
    return found


def matches(job: Job) -> bool:
    """Whether the device makes what the CPU makes."""
    made, wanted = job.ours().cpu(), job.wanted()
    if job.exact:
        return torch.equal(made, wanted)
    off = (made.double() - wanted.double()).abs().max() / wanted.double().abs().max()
    bound = 8 * CLOSE if made.dtype == torch.bfloat16 else CLOSE
    return bool(off <= bound)


def main() -> int:
    """Check, time, write."""
    parser = command_line(__doc__)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    if not options.rehearse and not torch.cuda.is_available():
        print("No GPU: --rehearse checks the kernels under Triton's interpreter.")
        return 2
    if options.rehearse:
        sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "kernels"))
        importlib.import_module("interpreter").install()
    device = "cpu" if options.rehearse else "cuda"
    about = {"gpu": "none" if options.rehearse else torch.cuda.get_device_name()}
    about |= {name: version(name) for name in ("torch", "triton")}
    rows = []
    for job in jobs(device, options.rehearse):
        row: dict[str, Any] = {"job": job.name, "match": matches(job)}
        if row["match"] and not options.rehearse:
            row |= timed(job)
        rows.append(row | about)
        print({k: v for k, v in row.items() if v != ""}, flush=True)
    names = dict.fromkeys(name for row in rows for name in row)
    full = [{name: row.get(name, "") for name in names} for row in rows]
    return conclude(full, None if options.rehearse else "gpu_device.csv")


def timed(job: Job) -> dict[str, Any]:
    """Microseconds of each, and how many times as fast ours is as the best of the others."""
    from ternary_ops.ops._gpu import gpu_module

    bench = gpu_module("_target").triton.testing.do_bench
    ours = 1e3 * bench(job.ours, return_mode="median")
    others = {name: 1e3 * bench(run, return_mode="median") for name, run in job.rivals.items()}
    best = min(others.values())
    return {
        "us": round(ours, 2),
        "times_best_rival": round(best / ours, 2),
        **{f"{name} us": round(us, 2) for name, us in others.items()},
    }


if __name__ == "__main__":
    sys.exit(main())

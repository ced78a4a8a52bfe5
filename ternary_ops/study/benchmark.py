# SPDX-License-Identifier: Apache-2.0
"""Times of a pruned ternary network beside other engines: what `ternary-ops bench` runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops.engine.shapes import infer, macs
from ternary_ops.engine.simulate import simulate
from ternary_ops.errors import MissingExtra, need
from ternary_ops.reporting import bars, new_figure, save_figure
from ternary_ops.study.timing import Call, int8_rival, interleaved, torch_call, torch_threads

# Image size of the comparison with the NumPy reference, which is slow.
_CHECKED = 48


@dataclass(frozen=True)
class Case:
    """A network, its input shape, and how to measure."""

    model: nn.Module
    shape: tuple[int, ...]
    zeros: float
    threads: int
    seconds: float


def network(name: str) -> nn.Module:
    """One of ternary_ops.models, with the random weights of seed 0."""
    torch.manual_seed(0)
    model: nn.Module = getattr(models, name)()
    return model.eval()


def one_layer(op: str, sizes: Sequence[int]) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of one layer, and the shape of one input; the filter is padded to keep H and W."""
    torch.manual_seed(0)
    if op == "linear":
        k, n = sizes
        return nn.Sequential(nn.Linear(k, n)).eval(), (k,)
    c, h, w, o, kernel = sizes
    layer = nn.Conv2d(c, o, kernel, padding=kernel // 2)
    return nn.Sequential(layer, nn.ReLU()).eval(), (c, h, w)


def measure(case: Case, against: Sequence[str], prune_all: bool) -> list[dict[str, Any]]:
    """One row per engine: milliseconds of the whole batch and how many times ours it takes.

    prune_all: make even the layers ternary that a plan leaves at int8.
    """
    x = torch.rand(case.shape, generator=torch.Generator().manual_seed(0))
    trained = _ternary(case, x, prune_all)
    program = tops.compile(trained, x)
    array = x.numpy()
    part = np.ascontiguousarray(array[:, :, :_CHECKED, :_CHECKED] if array.ndim == 4 else array)
    match = bool(np.array_equal(program(part), simulate(program.graph, part)[-1]))
    calls: dict[str, Call] = {"ternary-ops": lambda: program(array)}
    notes = {"ternary-ops": f"isa {runtime.isa()}"}
    for name in against:
        for engine, call, note in _RIVALS[name](case, x):
            calls[engine], notes[engine] = call, note
    with torch_threads(case.threads), runtime.num_threads(case.threads):
        ms = interleaved(calls, case.seconds) if match else dict.fromkeys(calls, float("nan"))
    count = sum(macs(program.graph, infer(program.graph, x.shape[0], *x.shape[2:])))
    return [
        {
            "engine": name,
            "ms": ms[name],
            "times ours": ms[name] / ms["ternary-ops"],
            "dense GMAC/s": count / ms[name] / 1e6,
            "match": ("yes" if match else "NO") if name == "ternary-ops" else "-",
            "note": notes[name],
        }
        for name in calls
    ]


def plot(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Save a bar per engine."""
    figure, (axes,) = new_figure(1)
    bars(axes, [row["engine"] for row in rows], [row["ms"] for row in rows], "ms")
    save_figure(figure, path)


def _ternary(case: Case, x: Tensor, prune_all: bool) -> nn.Module:
    """The network with ternary weights, each layer pruned in one step, ranges from x."""
    model = copy.deepcopy(case.model)
    config = tops.TernaryConfig(zeros=case.zeros, scope="layer")
    tops.quantize_(model, tops.plan(model, config, rules={"*": config} if prune_all else None))
    tops.prune.Pruner(model, schedule="one_cycle", total_steps=1).step()
    tops.calibrate(model, [x])
    return model.eval()


Engine = tuple[str, Call, str]


def _torch(case: Case, x: Tensor) -> list[Engine]:
    version = f"torch {torch.__version__}"
    engines: list[Engine] = [("torch fp32", torch_call(case.model, x), version)]
    rival, note = int8_rival(case.model, x)
    if rival is not None:
        engines.append(("torch int8", torch_call(rival, x), f"engine {note}"))
    return engines


def _openvino(case: Case, x: Tensor) -> list[Engine]:
    try:
        import openvino
    except ImportError as error:
        raise _missing("openvino") from error
    network = openvino.convert_model(case.model, example_input=x)
    options = {"INFERENCE_NUM_THREADS": case.threads, "PERFORMANCE_HINT": "LATENCY"}
    array, note = x.numpy(), f"openvino {openvino.__version__.partition('-')[0]}"
    engines: dict[str, Engine] = {}
    # Left alone, it computes in bfloat16 where the processor can: fast, but not float32.
    for precision in ({"INFERENCE_PRECISION_HINT": "f32"}, {}):
        compiled = openvino.Core().compile_model(network, "CPU", {**options, **precision})
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        name = f"openvino {used.replace('f32', 'fp32')}"
        engines.setdefault(name, (name, partial(compiled, array), note))
    return list(engines.values())


def _onnxruntime(case: Case, x: Tensor) -> list[Engine]:
    try:
        import onnx  # noqa: F401  (torch.onnx.export writes through it)
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime and onnx") from error
    import io

    file = io.BytesIO()
    torch.onnx.export(case.model, (x,), file, input_names=["x"], dynamo=False)  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    given = {"x": x.numpy()}
    note = f"onnxruntime {onnxruntime.__version__}"
    return [("onnxruntime fp32", lambda: session.run(None, given), note)]


_RIVALS = {"torch": _torch, "openvino": _openvino, "onnxruntime": _onnxruntime}


def _missing(package: str) -> MissingExtra:
    do = "pip install 'ternary-ops[bench]'"
    return MissingExtra(need(f"this comparison needs {package}", "none installed", do))

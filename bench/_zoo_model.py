# SPDX-License-Identifier: Apache-2.0
"""One model of a library in this process: compiled, quantized, with islands, and timed.

Each part adds its figures to the row as soon as it has them, so that a process that is stopped
leaves what it found.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _zoo_list import Model, build
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.benchmark import pruned_networks
from ternary_ops.benchmark.timing import torch_call, torch_threads
from ternary_ops.compiler.island_program import IslandProgram
from ternary_ops.errors import UnsupportedModel, UnsupportedShape
from ternary_ops.program.interpret import node_value
from ternary_ops.program.layer_costs import call_ms

MOST_ERROR = 1e-3  # of the largest output
_CALIBRATED, _COMPARED = 8, 4  # images

Save = Callable[[dict[str, Any]], None]


def measure(model: Model, quick: bool, save: Save) -> None:
    """Fill a row, which `save` keeps after every part. quick: compile in float32 alone."""
    row: dict[str, Any] = {"state": "crash", "part": "making the model"}
    save(row)
    torch.manual_seed(0)
    network = build(model.source, model.name)
    sample = pruned_networks.images(_CALIBRATED, 3, model.size)
    x = pruned_networks.images(_COMPARED, 3, model.size, start=_CALIBRATED)
    randomize_(network, sample)
    row["parameters"] = sum(p.numel() for p in network.parameters())
    with torch.inference_mode():
        wanted = network(x)
    case = _Case(network, sample, x, wanted, row, save)
    program = _float(case)
    if not quick:
        if row["state"] == "refused":
            _islands(case)
        elif program is not None:
            _quantized(case)
            _timed(case, program)
    row.pop("part")
    save(row)


def randomize_(network: nn.Module, x: Tensor) -> None:
    """Parameters that are all one number become random, and BatchNorm sees two batches.

    Otherwise branches that start at zero would hide what is behind them, and BatchNorm with mean 0
    and variance 1 would be no more than its eps.
    """
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.numel() > 1 and bool((value == value.flatten()[0]).all()):
                norm_weight = value.ndim == 1 and name.endswith("weight")
                low, high = (0.5, 1.5) if norm_weight else (-0.2, 0.2)
                value.uniform_(low, high)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.6
        norm.train()
    with torch.no_grad():
        for part in torch.split(x, len(x) // 2):
            network(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


class _Case:
    """A network, images to calibrate on and to compare, its outputs, and the row to fill."""

    def __init__(
        self,
        network: nn.Module,
        sample: Tensor,
        x: Tensor,
        wanted: Any,
        row: dict[str, Any],
        save: Save,
    ) -> None:
        self.network, self.sample, self.x, self.wanted = network, sample, x, wanted
        self.row, self.save = row, save

    def attempt(self, prefix: str, part: str, run: Callable[[], dict[str, Any]]) -> bool:
        """Add what `run` finds, or why it found nothing; True if it found it."""
        self.row.update({f"{prefix}state": "crash", "part": part})
        self.save(self.row)
        start, found = time.perf_counter(), {}
        try:
            found = run()
        except (UnsupportedModel, UnsupportedShape) as error:
            found = {"state": "refused", "reason": str(error)}
        except MemoryError as error:
            found = {"state": "memory", "reason": str(error)}
        except Exception as error:  # any other one is a fault of ours, to be shown
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            text = str(error).strip().partition("\n")[0]
            found = {"state": "crash", "reason": f"{type(error).__name__} ({place}): {text}"}
        found["seconds"] = round(time.perf_counter() - start, 2)
        self.row.update({f"{prefix}{name}": value for name, value in found.items()})
        self.save(self.row)
        return found["state"] == "ok"


def _float(case: _Case) -> runtime.Program | None:
    """The float32 program beside the network."""
    made: list[runtime.Program] = []

    def run() -> dict[str, Any]:
        program = tops.compile(case.network, case.x[:1])
        made.append(program)
        error = _difference(program(case.x.numpy()), case.wanted)
        return {"state": _state(error), "error": error, "bytes": _bytes(program)}

    return made[0] if case.attempt("", "compile", run) else None


def _quantized(case: _Case) -> None:
    """All layers at 8 bits by the default calibration, beside torch and beside float."""

    def run() -> dict[str, Any]:
        network = copy.deepcopy(case.network)
        tops.quantize_(network, tops.plan(network, tops.TernaryConfig(weights="int8")))
        tops.calibrate(network, torch.split(case.sample, 4))
        program = tops.compile(network, case.x[:1])
        got = program(case.x.numpy())
        with torch.inference_mode():
            fake = network.eval()(case.x)
        one = case.x[:1].numpy()
        exact = _node_error(program, one)
        return {
            **{"state": _state(exact), "reference_error": exact},
            **{"fake_error": _difference(got, fake), "sqnr": sqnr(got, case.wanted.numpy())},
            **{"fake_sqnr": sqnr(fake.numpy(), case.wanted.numpy())},
            **{"ms": round(call_ms(partial(program, one)), 3), "bytes": _bytes(program)},
        }

    with torch_threads(1), runtime.num_threads(1):
        case.attempt("int8_", "8 bits", run)


def _node_error(program: runtime.Program, x: np.ndarray) -> float:
    """The largest difference of a node from its NumPy reference, given what the engine gave it;
    infinite where codes differ. Through the whole network one last bit of a float can turn a code.
    """
    made, worst = program.trace(x), 0.0
    for node, got in zip(program.graph.nodes[1:], made[1:], strict=True):
        wanted = np.ascontiguousarray(node_value(program.graph, node, made))
        error = _difference(got, torch.from_numpy(wanted))
        worst = max(worst, math.inf if error and got.dtype == np.uint8 else error)
    return worst


def _islands(case: _Case) -> None:
    """The refused network with its unsupported modules in PyTorch."""

    def run() -> dict[str, Any]:
        program = tops.compile(case.network, case.x[:1], islands=True)
        error = _difference(program(case.x.numpy()), case.wanted)
        share = program.share if isinstance(program, IslandProgram) else 0.0
        return {"state": _state(error), "error": error, "share": round(share, 4)}

    case.attempt("islands_", "islands", run)


def _timed(case: _Case, program: runtime.Program) -> None:
    """Milliseconds of the float32 program and of torch for one image on one thread."""
    one = case.x[:1]
    with torch_threads(1), runtime.num_threads(1):
        case.row["ms"] = round(call_ms(partial(program, one.numpy())), 3)
        case.row["torch_ms"] = round(call_ms(torch_call(case.network, one)), 3)
    case.save(case.row)


def sqnr(got: np.ndarray, wanted: np.ndarray) -> float:
    """Signal over quantization noise in dB, over all outputs of all images."""
    noise = float(((got.astype(np.float64) - wanted) ** 2).sum())
    return round(
        10 * math.log10(float((wanted.astype(np.float64) ** 2).sum()) / max(noise, 1e-30)), 1
    )


def _difference(got: np.ndarray, wanted: Tensor) -> float:
    """The largest difference over the largest finite output; infinite for another shape, NaN, or an
    infinity in another place. Borders of a maximum pool are infinite where they should be.
    """
    if tuple(got.shape) != tuple(wanted.shape):
        return math.inf
    exact = wanted.numpy().astype(np.float64)
    finite = np.abs(exact[np.isfinite(exact)])
    apart = got != exact  # also where either is NaN
    if not apart.any():
        return 0.0
    error = float(np.abs(got[apart] - exact[apart]).max() / (finite.max(initial=0.0) or 1.0))
    return error if math.isfinite(error) else math.inf


def _state(error: float) -> str:
    return "ok" if error <= MOST_ERROR else "wrong"


def _bytes(program: runtime.Program) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.safetensors")
        program.save(path)
        return path.stat().st_size

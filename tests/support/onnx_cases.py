"""The conformance cases of the package onnx, one after the other through load_onnx."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from ternary_ops.errors import TernaryOpsError
from ternary_ops.interchange import load_onnx

KINDS = ("node", "pytorch-converted", "pytorch-operator", "simple")
_Values = list[Any]


@dataclass
class Verdicts:
    """What became of the cases: passes, refused, wrong, unnamed; and the last two's names."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@functools.cache
def cases() -> list[Any]:
    """All of them; the package computes expected results on the way, with warnings of NumPy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [case for kind in KINDS for case in load_model_tests(kind=kind)]


def judged(path: Path) -> Verdicts:
    """Every case, once for each float32 input as the image (or the first); others are constants."""
    found = Verdicts()
    for case in cases():
        model = case.model or onnx.load(Path(case.model_dir) / "model.onnx")
        for inputs, outputs in _data(case, model):
            floats = [n for n, x in enumerate(inputs) if getattr(x, "dtype", None) == np.float32]
            for number in floats or [0]:
                path.unlink(missing_ok=True)  # writing over a file waits for the disk
                path.write_bytes(_with_constants(model, inputs, number).SerializeToString())
                verdict, why = _verdict(path, inputs[number : number + 1], outputs, case)
                found.counts[verdict] += 1
                if verdict in ("wrong", "unnamed"):
                    found.faults.append(f"{case.name}, input {number}: {verdict}: {why}")
    return found


def _verdict(path: Path, inputs: _Values, outputs: _Values, case: Any) -> tuple[str, str]:
    try:
        network = load_onnx(path)
        with torch.no_grad():
            made = network(*(torch.from_numpy(np.array(x)) for x in inputs)).numpy()
    except TernaryOpsError as error:
        return ("refused", "") if len(str(error)) > 20 else ("unnamed", repr(error))
    except Exception as error:  # what is looked for
        return "unnamed", repr(error).partition("\n")[0]
    wanted = outputs[0]
    if not isinstance(wanted, np.ndarray) or (made.shape, made.dtype) != (
        wanted.shape,
        wanted.dtype,
    ):
        return "wrong", f"{made.dtype} {made.shape}"
    if not np.allclose(made, wanted, rtol=case.rtol, atol=case.atol, equal_nan=True):
        return "wrong", f"off by {np.abs(made - wanted).max()}"
    return "passes", ""


def _with_constants(model: Any, inputs: _Values, image: int) -> Any:
    """The model with every tensor but one input as an initializer."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for number, (info, values) in enumerate(zip(model.graph.input, inputs, strict=False)):
        if number != image and _is_numbers(values):
            made.graph.initializer.append(numpy_helper.from_array(values, info.name))
    return made


def _is_numbers(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype != object


def _data(case: Any, model: Any) -> Iterator[tuple[_Values, _Values]]:
    if case.data_sets is not None:
        yield from case.data_sets
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        parts = [("input", model.graph.input), ("output", model.graph.output)]
        yield tuple(  # type: ignore[misc]
            [
                _read(folder / f"{name}_{number}.pb", info)
                for number, info in enumerate(infos)
                if (folder / f"{name}_{number}.pb").exists()
            ]
            for name, infos in parts
        )


def _read(path: Path, info: Any) -> NDArray[Any] | None:
    """The numbers of a stored tensor; None for sequences and the like."""
    if info.type.WhichOneof("value") != "tensor_type":
        return None
    made: NDArray[Any] = numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))
    return made

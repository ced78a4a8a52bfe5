# SPDX-License-Identifier: Apache-2.0
"""Other engines on a float32 network: their own 8-bit quantization, and float32 for information.

Each takes the same network and calibration images and returns engines that map a float32 NCHW array
to a float32 array. Threads are fixed when an engine is made.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops.benchmark.timing import int8_baseline
from ternary_ops.errors import BadConfig, MissingExtra, need

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """name, e.g. "openvino int8"; run: one batch in, logits out; note: version and method."""

    name: str
    run: Callable[[Array], Array]
    note: str

    def in_batches(self, images: Array, batch: int) -> Array:
        """Outputs for images [N, ...], run `batch` at a time; the last batch is filled up."""
        padded = np.resize(images, (len(images) + -len(images) % batch, *images.shape[1:]))
        parts = [np.array(self.run(padded[i : i + batch])) for i in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(images)]


def engines(
    names: Sequence[str], model: nn.Module, x: Tensor, samples: Tensor, threads: int
) -> list[Engine]:
    """The engines of every family in `names`, quantized on `samples`, for inputs of x's shape.

    Raises BadConfig for an unknown family, MissingExtra for one that is not installed.
    """
    if unknown := sorted(set(names) - set(BASELINES)):
        what = f"as baseline one of {', '.join(BASELINES)}"
        raise BadConfig(need(what, unknown[0], "Separate them by commas."))
    return [engine for name in names for engine in BASELINES[name](model, x, samples, threads)]


def save_int8(name: str, model: nn.Module, x: Tensor, samples: Tensor, folder: Path) -> Path:
    """Quantize with one family of BASELINES and write what its runtime loads: .xml, .onnx or .pt.

    Raises what `engines` raises.
    """
    if name == "openvino":
        file, graphs = folder / "openvino.xml", openvino_graphs(model, x, samples)
        _imported("openvino").save_model(graphs["int8"], file, compress_to_fp16=False)
    elif name == "onnxruntime":
        file = _onnx_files(model, x, samples, folder)["int8"]
    else:
        file = folder / "torch.pt"
        torch.jit.save(_torch_int8(model, x, samples)[0], file)
    return file


def _torch(model: nn.Module, x: Tensor, samples: Tensor, threads: int) -> list[Engine]:
    note = f"torch {torch.__version__}"
    int8, engine = _torch_int8(model, x, samples)
    return [
        Engine("torch fp32", _torch_run(_frozen(model, x)), f"{note}, jit.freeze"),
        Engine("torch int8", _torch_run(int8), f"{note}, FX {engine}, jit.freeze"),
    ]


def _torch_int8(model: nn.Module, x: Tensor, samples: Tensor) -> tuple[nn.Module, str]:
    baseline, engine = int8_baseline(model, samples)
    if baseline is None:
        raise BadConfig(need("a network that torch int8 quantizes", engine, "Leave torch out."))
    return _frozen(baseline, x), engine


def _frozen(model: nn.Module, x: Tensor) -> nn.Module:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(model.eval(), x)  # type: ignore[no-untyped-call]
        frozen: nn.Module = torch.jit.freeze(script)
    return frozen


def _torch_run(model: nn.Module) -> Callable[[Array], Array]:
    def run(array: Array) -> Array:
        with torch.inference_mode():
            y: Array = model(torch.from_numpy(array)).numpy()
        return y

    return run


def _openvino(model: nn.Module, x: Tensor, samples: Tensor, threads: int) -> list[Engine]:
    openvino, nncf = (_imported(name) for name in ("openvino", "nncf"))
    note = f"openvino {openvino.__version__.partition('-')[0]}"
    notes = {"fp32": note, "int8": f"{note}, nncf {nncf.__version__}"}
    graphs = openvino_graphs(model, x, samples)
    return [
        Engine(f"openvino {name}", openvino_run(graph, threads), notes[name])
        for name, graph in graphs.items()
    ]


def openvino_run(graph: Any, threads: int) -> Callable[[Array], Array]:
    """Callable that runs a graph of `openvino_graphs`; set its input shapes by graph.reshape."""
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    # Left alone, it computes in bfloat16 where the processor can: slower, and not float32.
    options["INFERENCE_PRECISION_HINT"] = "f32"
    core = _imported("openvino").Core()
    request = core.compile_model(graph, "CPU", options).create_infer_request()

    def run(array: Array) -> Array:
        y: Array = request.infer([array], share_inputs=True, share_outputs=True)[0]
        return y

    return run


def openvino_graphs(model: nn.Module, x: Tensor, samples: Tensor) -> dict[str, Any]:
    """fp32 and int8 for inputs of x's shape; quantized on one image at a time."""
    openvino, nncf = (_imported(name) for name in ("openvino", "nncf"))
    logging.getLogger("nncf").setLevel(logging.ERROR)

    def convert(batch: int) -> Any:
        shape = [batch, *x.shape[1:]]
        return openvino.convert_model(copy.deepcopy(model), example_input=x, input=[shape])

    given = [sample[None] for sample in samples.numpy()]
    # Without VNNI its kernels saturate 16-bit sums, too.
    fix = nncf.OverflowFix.DISABLE if _has_vnni() else nncf.OverflowFix.ENABLE
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=fix)
    with contextlib.redirect_stdout(io.StringIO()):
        int8 = nncf.quantize(
            *(convert(1), nncf.Dataset(given)),
            **{"subset_size": len(given), "advanced_parameters": advanced},
        )
    int8.reshape(list(x.shape))
    return {"fp32": convert(len(x)), "int8": int8}


def _onnxruntime(model: nn.Module, x: Tensor, samples: Tensor, threads: int) -> list[Engine]:
    onnxruntime = _imported("onnxruntime")
    note = f"onnxruntime {onnxruntime.__version__}"
    notes = {"fp32": note, "int8": f"{note}, static QDQ"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file in _onnx_files(model, x, samples, Path(folder)).items():
            session = onnxruntime.InferenceSession(
                file.read_bytes(), options, providers=["CPUExecutionProvider"]
            )

            def run(array: Array, session: Any = session) -> Array:
                y: Array = session.run(None, {"x": array})[0]
                return y

            found.append(Engine(f"onnxruntime {name}", run, notes[name]))
    return found


def _onnx_files(model: nn.Module, x: Tensor, samples: Tensor, folder: Path) -> dict[str, Path]:
    _imported("onnx")  # torch.onnx.export writes through it
    files = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            *(copy.deepcopy(model), (x,), str(files["fp32"])),
            **{"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "dynamo": False},  # type: ignore[arg-type]
        )
    _quantize_onnx(files["fp32"], files["int8"], samples)
    return files


def _quantize_onnx(source: Path, target: Path, samples: Tensor) -> None:
    tools = importlib.import_module("onnxruntime.quantization")
    shape_inference = importlib.import_module("onnxruntime.quantization.shape_inference")

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """One image at a time."""

        def __init__(self) -> None:
            self._left: Iterator[Array] = iter(samples.numpy())

        def get_next(self) -> dict[str, Array] | None:
            """The next input, None after the last."""
            image = next(self._left, None)
            return None if image is None else {"x": image[None]}

    ready = source.with_suffix(".ready.onnx")
    shape_inference.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    with _quiet():
        tools.quantize_static(
            str(ready),
            str(target),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            per_channel=True,
            # Without VNNI its kernels saturate 16-bit sums; this halves the weights' range there.
            reduce_range=not _has_vnni(),
        )


def _has_vnni() -> bool:
    from ternary_ops import runtime

    # oneDNN, and with it OpenVINO, can be asked to do without.
    capped = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ("SSE41", "AVX", "AVX2")
    return not capped and any("vnni" in name for name in runtime.available_isas())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        do = "pip install 'ternary-ops[bench]'"
        raise MissingExtra(
            need(f"the package {name} for this comparison", "none installed", do)
        ) from error


BASELINES: dict[str, Callable[[nn.Module, Tensor, Tensor, int], list[Engine]]] = {
    "torch": _torch,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}

# SPDX-License-Identifier: Apache-2.0
"""Networks as files: kind "weights" of `ternary_ops.io.container` (docs/formats.md).

The file holds what the packed network holds: codes, scales, biases, input ranges, the names of the
BatchNorms folded away, and every other tensor without loss. The architecture stays in Python.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel, need
from ternary_ops.graph.entries import entry_of, tensor_of_entry
from ternary_ops.graph.nodes import layer_class
from ternary_ops.graph.observed import Ranges, is_entry, keep_ranges, ranges_of
from ternary_ops.graph.replace import replace_modules
from ternary_ops.graph.state import load_state
from ternary_ops.graph.subclass_twins import rest_of, twin_of
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.io import container
from ternary_ops.io.container import WeightEntry
from ternary_ops.layout import codes as layout
from ternary_ops.nn.engine_cost import EngineCost
from ternary_ops.nn.geometry import edges_of, geometry_of
from ternary_ops.quantize.convert import pack_

KIND = "weights"
_OTHER = "Load it into the architecture it was saved from, built as plain float layers."
_DAMAGED = "The file is damaged, or of a later version: save it again, or update ternary-ops."
_BFLOAT16 = "bfloat16"  # unknown to NumPy: stored as int16, named in the index
_TINY, _MOST = (float(v) for v in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
_SHOWN = 5


def save(model: nn.Module, path: str | os.PathLike[str], *, allow_unfinished: bool = False) -> None:
    """Write a packed network, or the packed form of a quantized one, which is not changed.

    allow_unfinished: as for pack_.

    Raises UnsupportedModel without quantized layers, with a state that is no plain tensor, and
    where pack_ does; the file is replaced atomically.

    >>> _ = tops.quantize_(model, tops.TernaryConfig("int8"))
    >>> tops.calibrate(model, [x])
    >>> tops.save(model, "weights.safetensors")
    >>> same = tops.load("weights.safetensors", digits_resnet(width=8))
    >>> torch.equal(same(x), tops.pack_(model)(x))
    True
    """
    model = unwrap(model)
    packed_already = any(isinstance(m, tnn.PackedLayer) for m in model.modules())
    if not packed_already or any(isinstance(m, tnn.TernaryLayer) for m in model.modules()):
        model = pack_(copy_of(model), allow_unfinished=allow_unfinished)
    layers, entries = [], []
    own: set[str] = set()
    packed = {n: m for n, m in model.named_modules() if isinstance(m, tnn.PackedLayer)}
    for name, layer in packed.items():
        layers.append([name, layer.weights, _input(layer), _output(layer)])
        entries += _layer_entries(name, layer)
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, tnn.PackedLayer):
            own.update(_join(name, key) for key in layer.state_dict())
    bfloat16 = []
    for name, tensor in _distinct(model).items():
        if name not in own:
            entries.append(entry_of(name, tensor))
            if tensor.dtype == torch.bfloat16:
                bfloat16.append(name)
    folded = list(getattr(model, "_tops_folded", []))
    ranges = {name: list(bounds) for name, bounds in ranges_of(model).items()}
    costs = {name: m.cost.to_dict() for name, m in packed.items() if m.cost is not None}
    index = {"layers": layers, "folded": folded, _BFLOAT16: bfloat16, "ranges": ranges}
    index["costs"] = costs
    container.write(path, KIND, {key: rows for key, rows in index.items() if rows}, entries)


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Load a weights file into a float `model`, in place: its layers become packed; returns it.

    model: the architecture that was quantized, of plain torch.nn layers, with any weights, on any
    device (meta included). Raises FormatError for a damaged file or, naming them, for tensors that
    are missing, left over or of another shape; UnsupportedModel where a layer of the file is no
    Linear or Conv2d here. The model is then unchanged. Example: see `save`.
    """
    document = container.read(path)
    if document.kind != KIND:
        do = "ternary_ops.runtime.load reads programs."
        raise FormatError(need(f"weights in {path}", f"kind {document.kind!r}", do))
    given, model = model, unwrap(model)
    rows, folded, bfloat16 = _parse_index(document.index)
    ranges = _parse_ranges(document.index.get("ranges", {}))
    costs = _parse_costs(document.index.get("costs", {}), rows)
    new: dict[nn.Module, nn.Module] = {}
    for row in rows:
        twin = _packed_twin(model, row, document)
        twin.cost, new[_float_layer(model, row[0])] = costs.get(row[0]), twin
    for name in folded:
        norm = _batchnorm(model, name)
        new[norm] = rest_of(norm) or nn.Identity()
    state = {
        name: tensor_of_entry(entry, name in bfloat16) for name, entry in _rest(document, rows)
    }
    for row in rows:
        state |= _layer_state(row, document)
    replace_modules(model, new)
    gained = _add_biases(model, state)
    try:
        state = _complete(model, state)
    except (FormatError, UnsupportedModel) as error:
        for layer in gained:
            layer.register_parameter("bias", None)
        replace_modules(model, {packed: layer for layer, packed in new.items()})
        raise type(error)(f"{path}: {error}") from None
    on_meta = any(t.is_meta for t in _distinct(model).values())
    load_state(model, state, assign=on_meta)
    model._tops_folded = folded  # type: ignore[assignment]  # a plain attribute, as pack_ leaves it
    keep_ranges(model, ranges)
    return given


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the state under its first name; raises UnsupportedModel for other state."""
    first: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if is_entry(name):
            continue
        if not isinstance(value, Tensor):
            what = f"a tensor as the state {name!r}"
            raise UnsupportedModel(need(what, type(value).__name__, "Save it on its own."))
        if first.setdefault(id(value), name) == name:
            found[name] = value.detach()
    return found


def _input(layer: tnn.PackedLayer) -> list[float] | None:
    scale = float(layer.input_scale)
    if math.isnan(scale):
        return None
    return [float(str(np.float32(scale))), int(layer.input_zero_point)]


def _output(layer: tnn.PackedLayer) -> list[float] | None:
    bounds = layer.output_range
    return None if bounds.isnan().any() else [float(str(np.float32(v))) for v in bounds]


def _layer_entries(name: str, layer: tnn.PackedLayer) -> list[WeightEntry]:
    values, scale = layer.integer_weight()
    integers = values.cpu().numpy()
    if integers.ndim == 4:
        integers = layout.channels_last(integers)
    floats = {"scale": scale, "bias": layer.bias}
    return [WeightEntry(_join(name, "codes"), layer.weights, integers)] + [
        entry_of(_join(name, key), t) for key, t in floats.items() if t is not None
    ]


Row = tuple[str, str, "tuple[float, int] | None", "tuple[float, float] | None"]


def _parse_index(index: dict[str, Any]) -> tuple[list[Row], list[str], set[str]]:
    """(name, weights, input, output), names of folded BatchNorms, names of bfloat16 tensors."""
    rows, folded, bfloat16 = (index.get(key, []) for key in ("layers", "folded", _BFLOAT16))
    known = {"layers", "folded", _BFLOAT16, "ranges", "costs"}
    if not set(index) <= known or type(rows) is not list:
        what = "an index of weights: layers and folded"
        raise FormatError(need(what, sorted(index), _DAMAGED))
    for names in (folded, bfloat16):
        if type(names) is not list or any(type(name) is not str for name in names):
            raise FormatError(need("a list of names", f"{names!r:.80}", _DAMAGED))
    return [_parse_row(row) for row in rows], folded, set(bfloat16)


def _parse_ranges(ranges: Any) -> Ranges:
    """Of values that no layer owns, see `graph.observed`."""
    if type(ranges) is not dict:
        raise FormatError(need("ranges by the names of values", f"{ranges!r:.80}", _DAMAGED))
    return {name: _parse_bounds(name, bounds) for name, bounds in ranges.items()}


def _parse_costs(costs: Any, rows: list[Row]) -> dict[str, EngineCost]:
    """What layers' empty units save in the engine, by name."""
    names = {row[0] for row in rows}
    if type(costs) is not dict or not set(costs) <= names:
        raise FormatError(need("costs by the names of layers", f"{costs!r:.80}", _DAMAGED))
    try:
        return {name: EngineCost.from_dict(values) for name, values in costs.items()}
    except BadConfig as error:
        raise FormatError(f"{error} {_DAMAGED}") from None


def _parse_bounds(name: str, bounds: Any) -> tuple[float, float]:
    lo, hi = bounds if type(bounds) is list and len(bounds) == 2 else (None, None)
    if type(lo) is not float or type(hi) is not float or not _ordered(lo, hi):
        raise FormatError(need(f"an output lo <= hi of {name!r}", f"{bounds!r:.80}", _DAMAGED))
    return lo, hi


def _parse_row(row: Any) -> Row:
    name, weights, params, bounds = row if type(row) is list and len(row) == 4 else [None] * 4
    if type(name) is not str or weights not in ("ternary", "int8"):
        what = "a layer as [name, weights, input, output]"
        raise FormatError(need(what, f"{row!r:.80}", _DAMAGED))
    output = None if bounds is None else _parse_bounds(name, bounds)
    if params is None:
        return name, weights, None, output
    scale, zero_point = params if type(params) is list and len(params) == 2 else (None, None)
    if type(scale) is not float or not _TINY <= scale <= _MOST:
        raise FormatError(need(f"an input scale > 0 of {name!r}", f"{params!r:.80}", _DAMAGED))
    if type(zero_point) is not int or not 0 <= zero_point <= 255:
        raise FormatError(need(f"a zero point in 0..255 of {name!r}", zero_point, _DAMAGED))
    return name, weights, (scale, zero_point), output


def _ordered(lo: float, hi: float) -> bool:
    return -_MOST <= lo <= hi <= _MOST


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name) if name else None
    except AttributeError:
        return None


def _float_layer(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layer = _find(model, name)
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        if layer_class(layer) in (nn.Linear, nn.Conv2d) or twin_of(layer) is not None:
            return layer
    got = "no such layer" if layer is None else type(layer).__name__
    raise UnsupportedModel(need(f"{name!r} as a torch.nn.Linear or Conv2d", got, _OTHER))


def _batchnorm(model: nn.Module, name: str) -> nn.Module:
    layer = _find(model, name)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return layer
    got = "no such layer" if layer is None else type(layer).__name__
    raise UnsupportedModel(need(f"{name!r} as a BatchNorm (it was folded)", got, _OTHER))


def _packed_twin(model: nn.Module, row: Row, document: container.Document) -> tnn.PackedLayer:
    """A packed layer with the arguments of the float one, and nothing in it yet."""
    name, weights, _, _ = row
    layer: Any = _float_layer(model, name)
    layer = twin_of(layer) or layer
    entry = document.weights.get(_join(name, "codes"))
    shape = tuple(layer.weight.shape)
    if isinstance(layer, nn.Conv2d):
        shape = (shape[0], *shape[2:], shape[1])
    if entry is None or entry.kind != weights or entry.array.shape != shape:
        got = "nothing" if entry is None else f"{entry.kind} {list(entry.array.shape)}"
        raise FormatError(need(f"{weights} codes {list(shape)} for {name!r}", got, _OTHER))
    bias, device = _join(name, "bias") in document.weights, layer.weight.device
    if isinstance(layer, nn.Linear):
        twin: tnn.PackedLayer = tnn.PackedLinear(
            layer.in_features, layer.out_features, bias, device, weights
        )
    else:
        sizes = {**geometry_of(layer), "edges": edges_of(layer)}
        twin = tnn.PackedConv2d(**sizes, bias=bias, device=device, weights=weights)
    return twin.train(layer.training)


def _layer_state(row: Row, document: container.Document) -> dict[str, Tensor]:
    """State of a layer under PackedLayer's names."""
    name, _, params, bounds = row
    entry = document.weights[_join(name, "codes")]
    pack = layout.pack_codes if entry.kind == "ternary" else layout.pad_int8
    scale, zero_point = params or (math.nan, 0)
    state = {
        "codes": torch.from_numpy(pack(entry.array)),
        "input_scale": torch.tensor(scale, dtype=torch.float32),
        "input_zero_point": torch.tensor(zero_point, dtype=torch.uint8),
        "output_range": torch.tensor(bounds or (math.nan, math.nan), dtype=torch.float32),
    }
    for key in ("scale", "bias"):
        vector = document.weights.get(_join(name, key))
        if vector is not None:
            state[key] = tensor_of_entry(vector, False)
    return {_join(name, key): tensor for key, tensor in state.items()}


def _rest(document: container.Document, rows: list[Row]) -> list[tuple[str, WeightEntry]]:
    """The entries that belong to no packed layer."""
    own = {_join(name, key) for name, *_ in rows for key in ("codes", "scale", "bias")}
    return [(name, entry) for name, entry in document.weights.items() if name not in own]


def _add_biases(model: nn.Module, state: dict[str, Tensor]) -> list[nn.Module]:
    """Give float layers the bias that folding a BatchNorm gave the layers of the file."""
    gained: list[nn.Module] = []
    for name, tensor in state.items():
        parent, _, leaf = name.rpartition(".")
        layer = _find(model, parent) if leaf == "bias" else None
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(tensor, device=layer.weight.device))
            gained.append(layer)
    return gained


def _complete(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with every shared tensor under all its names; raises FormatError unless it fits."""
    wanted = _distinct(model)
    missing = [name for name in wanted if name not in state]
    if missing:
        what = "a file with all tensors of the model"
        raise FormatError(need(what, f"no {_listed(missing)}", _OTHER))
    extra = [name for name in state if name not in wanted]
    if extra:
        what = "a file with tensors of the model only"
        raise FormatError(need(what, f"also {_listed(extra)}", _OTHER))
    for name, tensor in wanted.items():
        found, expected = list(state[name].shape), list(tensor.shape)
        if found != expected:
            raise FormatError(need(f"{name!r} of shape {expected}", found, _OTHER))
    made: dict[int, Tensor] = {}  # one object for all names: assigning must not untie them
    complete = {}
    for name, old in model.state_dict(keep_vars=True).items():
        if is_entry(name):
            continue
        if id(old) not in made:
            learns = old.requires_grad and state[name].is_floating_point()
            is_parameter = isinstance(old, nn.Parameter)
            made[id(old)] = nn.Parameter(state[name], learns) if is_parameter else state[name]
        complete[name] = made[id(old)]
    return complete


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + rest


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

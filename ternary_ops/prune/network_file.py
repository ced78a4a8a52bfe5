# SPDX-License-Identifier: Apache-2.0
"""Networks as data: kind "network" of `ternary_ops.io.container` (docs/formats.md).

A network whose widths have changed no longer fits the code that made it. The file holds its graph,
by names of layers and functions, and its tensors: no pickle, and no class or code of the user's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ternary_ops.errors import FormatError, UnsupportedModel, check_type, need
from ternary_ops.graph import torch_ops
from ternary_ops.graph.batches import batch_of
from ternary_ops.graph.entries import entry_of, tensor_of_entry
from ternary_ops.graph.functional_layers import COMPUTED, READ
from ternary_ops.graph.graph_data import decode, encode
from ternary_ops.graph.module_data import describe, make
from ternary_ops.graph.nodes import operator_of
from ternary_ops.graph.observed import keep_ranges, ranges_of
from ternary_ops.graph.signature import outputs_of, signature_of, tensor_of
from ternary_ops.graph.trace import restoring, trace_at
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.io import container
from ternary_ops.io.container import Document, WeightEntry
from ternary_ops.io.safetensors import DAMAGED
from ternary_ops.prune.masked_run import differ

_log = logging.getLogger(__name__)
KIND = "network"
_KEYS = {"nodes", "layers", "parameters", "frozen", "shared", "bfloat16", "ranges"}


def save_network(model: nn.Module, example: Any, path: str | os.PathLike[str]) -> None:
    """Write a network, whatever its widths, as one safetensors file that needs none of its code.

    example: an input, as for compile: what was written is held to the network on it. Float networks
    and those of quantize_ alike; a packed one is saved by `tops.save`. Parts that run in training
    alone, such as auxiliary heads, are left out, with a warning.

    Raises UnsupportedModel, which names the part, for layers that are not of torch.nn, functions
    that compile does not know, weights computed of others, and Python code that decides on sizes.
    """
    network = unwrap(model)
    x = tensor_of(network, example)
    check_type("example", x, Tensor, "Pass an input of the network.")
    x = batch_of(x, 3)  # type: ignore[arg-type]
    traced = trace_at(network, x)
    _drop_functions(traced)
    _check_parameters(network, traced)
    index, tensors = _content(network, traced)
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    data = container.dumps(KIND, index, entries)
    _check(network, _build(container.read(data)), x)
    container.write(path, KIND, index, entries)


def load_network(path: str | os.PathLike[str]) -> fx.GraphModule:
    """The network of a file that `save_network` wrote, in eval mode; it trains, is quantized,
    compiled and exported like the one that was saved. Layers keep their names.

    Raises FormatError for a file that is damaged, of another kind, or names what is not known.

    >>> tops.prune.save_network(model, x, "network.safetensors")
    >>> same = tops.prune.load_network("network.safetensors")
    >>> torch.equal(same(x), model(x))
    True
    """
    return _build(container.read(path))


def _drop_functions(traced: fx.GraphModule) -> None:
    """Dropout written as a function, which a trace has as it is in eval mode, becomes a layer; that
    of other packages goes.
    """
    gone = set()
    for node in list(traced.graph.nodes):
        if operator_of(node) is not torch_ops.DROPOUT or node.op != "call_function":
            continue
        x, called = node.args[0], getattr(node.target, "__name__", "")
        if called in torch_ops.DROPOUT.named:
            gone.add(called)
            node.replace_all_uses_with(x)
        else:
            kinds: dict[str, type[nn.Module]] = {
                "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d,
                "alpha_dropout": nn.AlphaDropout,
            }  # fmt: skip
            p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            traced.add_submodule(f"{node.name}_layer", kinds.get(called, nn.Dropout)(p))
            with traced.graph.inserting_before(node):
                call = traced.graph.call_module(f"{node.name}_layer", (x,))
            node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
    for name in gone:
        _log.warning("saved without %s, which works in training alone", name)


def _check_parameters(network: nn.Module, traced: fx.GraphModule) -> None:
    """Refuse what a file would make constant or untie, and name what is left out."""
    held = {id(t): t for t in _tensors(traced).values()}
    names = {id(p): name for name, p in network.named_parameters()}
    read, copied = traced.meta.get(READ, {}), set[int]()
    for key in traced.meta.get(COMPUTED, ()):
        made = held.get(key)
        alike = [
            k
            for k, p in ((id(p), p) for p in network.parameters())
            if k in read and k not in copied and made is not None and torch.equal(p, made)
        ]
        copied.update(alike[:1])
    missing = {k: name for k, name in names.items() if k not in held and k not in copied}
    computed = [name for k, name in missing.items() if k in read]
    if computed:
        what = "parameters that layers and sums read as they are"
        got = f"others computed of {', '.join(computed[:3])}"
        do = "Replace it by a layer that holds the result."
        raise UnsupportedModel(need(what, got, do))
    if missing:
        rest = list(missing.values())
        _log.warning(
            "saved without %d parameters that do not reach the output: %s", len(rest), rest
        )


def _tensors(traced: fx.GraphModule) -> dict[str, Tensor]:
    """Every tensor that the graph computes with, by its path."""
    found: dict[str, Tensor] = {}
    for node in traced.graph.nodes:
        path = str(node.target)
        if node.op == "call_module":
            module = traced.get_submodule(path)
            held = {**module._parameters, **module._buffers}
            left = module._non_persistent_buffers_set
            found |= {f"{path}.{k}": t for k, t in held.items() if t is not None and k not in left}
        elif node.op == "get_attr":
            owner, _, name = path.rpartition(".")
            found[path] = getattr(traced.get_submodule(owner), name)
    return found


def _content(
    network: nn.Module, traced: fx.GraphModule
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The index of the file, and its tensors."""
    tensors, first, shared = _tensors(traced), dict[int, str](), {}
    for name, tensor in tensors.items():
        if first.setdefault(id(tensor), name) != name:
            shared[name] = first[id(tensor)]
    layers = {
        str(node.target): describe(str(node.target), traced.get_submodule(str(node.target)))
        for node in traced.graph.nodes
        if node.op == "call_module"
    }
    parameters = [name for name, t in tensors.items() if isinstance(t, nn.Parameter)]
    index = {
        "nodes": encode(traced.graph),
        "layers": layers,
        "parameters": parameters,
        "frozen": [name for name in parameters if not tensors[name].requires_grad],
        "shared": shared,
        "bfloat16": [name for name, t in tensors.items() if t.dtype == torch.bfloat16],
        "ranges": {name: list(bounds) for name, bounds in ranges_of(network).items()},
    }
    return index, {name: t.detach() for name, t in tensors.items() if name not in shared}


def _build(document: Document) -> fx.GraphModule:
    """The network that a file describes; raises FormatError."""
    if document.kind != KIND:
        do = "ternary_ops.runtime.load reads programs, ternary_ops.load weights."
        raise FormatError(need("a network", f"kind {document.kind!r}", do))
    index = document.index
    _check_index(index)
    graph = decode(index["nodes"])
    parts: dict[str, Any] = {path: make(path, data) for path, data in index["layers"].items()}
    tensors = _read_tensors(document)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if owner in parts:
            _fill(parts[owner], leaf, name, tensor)
        else:
            parts[name] = tensor
    for path, part in parts.items():
        waits = isinstance(part, nn.Module) and [*part.named_parameters(), *part.named_buffers()]
        empty = [name for name, _ in waits or () if f"{path}.{name}" not in tensors]
        if empty:
            raise FormatError(need(f"all tensors of {path!r}", f"no {', '.join(empty)}", DAMAGED))
    wanted = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    if not wanted <= set(parts):
        got = f"none for {', '.join(sorted(wanted - set(parts))[:3])}"
        raise FormatError(need("a layer or tensor for every node", got, DAMAGED))
    try:
        made = fx.GraphModule(parts, graph)
    except (RuntimeError, TypeError, AttributeError, SyntaxError, KeyError) as error:
        raise FormatError(need("a graph that can run", f"{error!r:.120}", DAMAGED)) from None
    keep_ranges(made, {name: (lo, hi) for name, (lo, hi) in index["ranges"].items()})
    return made.eval()


def _check_index(index: Mapping[str, Any]) -> None:
    if set(index) != _KEYS:
        raise FormatError(need(f"an index of {', '.join(sorted(_KEYS))}", sorted(index), DAMAGED))
    lists = all(
        type(index[key]) is list and all(type(name) is str for name in index[key])
        for key in ("parameters", "frozen", "bfloat16")
    )
    dicts = all(type(index[key]) is dict for key in ("layers", "shared", "ranges"))
    ranges = dicts and all(
        type(b) is list and len(b) == 2 and all(type(v) in (int, float) for v in b)
        for b in index["ranges"].values()
    )
    if not (lists and ranges and all(type(name) is str for name in index["shared"].values())):
        raise FormatError(need("lists of names, and ranges", "others", DAMAGED))


def _read_tensors(document: Document) -> dict[str, Tensor]:
    """Every tensor by its path, parameters as such; shared ones are one object."""
    index = document.index
    parameters, frozen = set(index["parameters"]), set(index["frozen"])
    found: dict[str, Tensor] = {}
    for name, entry in document.weights.items():
        tensor = _read_tensor(entry, name in index["bfloat16"])
        if name in parameters:
            if not (tensor.is_floating_point() or name in frozen):
                raise FormatError(need(f"a float parameter {name!r}", tensor.dtype, DAMAGED))
            tensor = nn.Parameter(tensor, requires_grad=name not in frozen)
        found[name] = tensor
    for name, first in index["shared"].items():
        if first not in document.weights or name in found:
            raise FormatError(need(f"a tensor for {name!r} to share", repr(first), DAMAGED))
        found[name] = found[first]
    return found


def _read_tensor(entry: WeightEntry, bfloat16: bool) -> Tensor:
    return tensor_of_entry(entry, bfloat16).clone()


def _fill(module: nn.Module, leaf: str, name: str, tensor: Tensor) -> None:
    """Put a tensor where the layer has one of its shape."""
    held: Any = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
    before = held.get(leaf)
    if before is None:
        raise FormatError(need("tensors that the layers have", repr(name), DAMAGED))
    if before.shape != tensor.shape:
        what = f"{name!r} of shape {list(before.shape)}"
        raise FormatError(need(what, list(tensor.shape), DAMAGED))
    held[leaf] = tensor


@torch.no_grad()
def _check(network: nn.Module, made: nn.Module, x: Tensor) -> None:
    """Raise UnsupportedModel unless what was written computes what the network does, also for
    another number of samples.
    """
    made.to(x.device)
    with restoring(network):
        wanted = [
            list(outputs_of(signature_of(network).call(network, part.clone())).values())
            for part in (x, x[:1])
        ]
    try:
        found = [list(outputs_of(made(part.clone())).values()) for part in (x, x[:1])]
    except RuntimeError:
        off = float("inf")
    else:
        off = max(differ(one, other) for one, other in zip(found, wanted, strict=True))
    if off:
        what = "a network whose Python code does not decide on the size of its input"
        got = f"a trace that differs for another batch ({off:.2g} of the largest value)"
        raise UnsupportedModel(need(what, got, "Save its state_dict, or rewrite that code."))

# SPDX-License-Identifier: Apache-2.0
"""The network inside DataParallel, torch.compile and the like: the one place that knows them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from ternary_ops.errors import UnsupportedModel, need

# By name, since some come from packages that may be absent; the attribute that holds the network.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEma": "ema",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
}
_SHARDED = (
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel",
    "torch.distributed.fsdp._fully_shard._fully_shard.FSDPModule",
)
_PREFIXES = tuple(f"{attribute}." for attribute in sorted(set(_WRAPPERS.values())))


def unwrap(model: object) -> nn.Module:
    """The network itself, out of any number of wrappers; one that is not wrapped passes through.

    Raises UnsupportedModel, naming the class, for sharded and scripted networks and for what is no
    torch.nn.Module.
    """
    what = "a network, a torch.nn.Module whose parameters and code are at hand"
    while True:
        names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__]
        inner = next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)
        if any(name in _SHARDED for name in names):
            do = "Its parameters are sharded over processes: pass the network before wrapping it."
            raise UnsupportedModel(need(what, type(model).__name__, do))
        if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            do = "Pass the network it was scripted or traced from."
            raise UnsupportedModel(need(what, type(model).__name__, do))
        if inner is not None:
            model = getattr(model, inner)
        elif isinstance(model, nn.Module):
            return model
        else:
            kind = model.__name__ if isinstance(model, type) else type(model).__name__
            got = f"the class {kind}" if isinstance(model, type) else kind
            raise UnsupportedModel(need(what, got, "Pass the network, an instance of its class."))


def copy_of(model: nn.Module, sharing: bool = False) -> nn.Module:
    """A deep copy, of weights too that a hook computed with gradients, which torch refuses to copy:
    the copy has their present values, until its hooks run. sharing: parameters and buffers are
    those of `model`. Raises UnsupportedModel, naming what cannot be copied.
    """
    memo: dict[int, object] = {}
    if sharing:
        memo |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the network holds may refuse in its own words
        results = ", ".join(_results(model))
        got = f"results of a computation: {results}" if results else f"{error}"
        do = "Keep a detached copy (tensor.detach()), or remove what cannot be copied."
        raise UnsupportedModel(need("a network that can be copied", got, do)) from error


def _results(model: nn.Module) -> Iterator[str]:
    """Attributes that hold a tensor with a gradient's history, which torch refuses to copy."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held = value.values() if isinstance(value, dict) else value
            held = held if isinstance(value, (dict, list, tuple)) else (value,)
            if any(isinstance(t, torch.Tensor) and t.grad_fn is not None for t in held):
                yield f"{path}.{name}" if path else name


def plain_name(name: str) -> str:
    """A layer's name in the network itself, from its name in a wrapped one."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name

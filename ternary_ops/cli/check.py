# SPDX-License-Identifier: Apache-2.0
"""Say whether a network compiles, what is missing, and predict bytes and times, before training.

MODEL is FILE.py:FUNCTION, a function that returns the torch.nn.Module, a name from a library
(torchvision:resnet50, timm:resnet50, or the bare name where one of them alone has it), FILE.onnx,
or a program that `compress` or .save wrote. Weights are random where MODEL brings none. The table
has what the file takes, and the milliseconds of one call on one thread of this machine, when shares
of the quads are empty; parts without a program form are listed by operator, with the first module
and line of code, and what islands=True would leave to PyTorch.

The exit code is 0 where the network compiles, otherwise 1.

example: ternary-ops check torchvision:resnet50
example: ternary-ops check net.py:build --sample 1,3,64,64 --json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from ternary_ops.errors import BadConfig, MissingExtra, need

_SAMPLE_DO = "Write --sample 1,3,224,224."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, its input and the shares of zeros."""
    parser.add_argument("model", metavar="MODEL", help="see above")
    parser.add_argument(
        "--sample", metavar="N,C,H,W", help="size of the input (default: the network's, or 224)"
    )
    parser.add_argument("--zeros", default="0,0.75,0.9", help="shares (default 0,0.75,0.9)")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 0 where the network compiles, otherwise 1."""
    zeros = _numbers("--zeros", arguments.zeros, float)
    shape = _numbers("--sample", arguments.sample, int) if arguments.sample else None
    if Path(arguments.model).suffix == ".safetensors":
        from ternary_ops import runtime

        model: Any = runtime.load(arguments.model)
        shape = shape or model.sample
    else:
        if importlib.util.find_spec("torch") is None:
            do = "pip install 'ternary-ops[train]'"
            raise MissingExtra(need("PyTorch for networks that are no programs", "none", do))
        model = _network(arguments.model)
        shape = shape or _shape(model, arguments.model)
    if min(shape) < 1:
        raise BadConfig(need("sizes of at least 1 in --sample", list(shape), _SAMPLE_DO))
    from ternary_ops.checking import check

    found = check(model, np.random.default_rng(0).normal(size=shape).astype(np.float32), zeros)
    if arguments.json:
        print(json.dumps({"model": arguments.model, **found.to_dict()}, indent=2))
    else:
        print(f"{arguments.model}, {found}\n\n{found.seconds:.1f} s")
    return 0 if found.compiles else 1


def _network(text: str) -> Any:
    from ternary_ops.models import zoo
    from ternary_ops.study import user_code

    if text.endswith(".onnx"):
        from ternary_ops.interchange import load_onnx

        return load_onnx(text)
    if ".py:" in text or text.endswith(".py"):
        return user_code.load_builder(text)()
    return zoo.zoo_builder(zoo.full_name(text), 1000)()


def _shape(model: Any, text: str) -> tuple[int, ...]:
    """The library's image size, else 224; channels are those of the first layer."""
    from torch import nn

    size = getattr(model, "default_cfg", {}).get("input_size")
    if size is not None:
        return (1, *size)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return 1, module.in_features
        if hasattr(module, "in_channels"):
            return 1, module.in_channels, 224, 224
    raise BadConfig(need(f"--sample for {text}", "no layer that tells the channels", _SAMPLE_DO))


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = f"numbers with commas for {option}"
        raise BadConfig(need(what, repr(text), f"Write {option} like the default.")) from None

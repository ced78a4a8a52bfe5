# SPDX-License-Identifier: Apache-2.0
"""Every public function answers bad input in this package's words: named, expected, got, do."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkout import ROOT
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import errors, quantize, runtime
from ternary_ops.errors import TernaryOpsError, need
from ternary_ops.prune import Pruner, reconstruct_
from ternary_ops.quantize import Budget, Distillation, Plan
from ternary_ops.train.checkpoint import Checkpoint

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(2, 5, 9, 9, generator=torch.Generator().manual_seed(1))
# What torch.fx, torch.export, copy, json and zipfile say of themselves.
FOREIGN = ("While executing", "Original traceback", "deepcopy protocol", "zipfile", "JSONDecode")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def quantized() -> nn.Sequential:
    model = net()
    tops.quantize_(model, tops.TernaryConfig(zeros=0.5))
    return model


def calibrated() -> nn.Sequential:
    model = quantized()
    tops.calibrate(model, [X])
    return model


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock, self.conv = threading.Lock(), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), x], 1)


def broken() -> nn.Module:
    model = Broken()
    tops.quantize_(model, tops.TernaryConfig())
    return model


def cached() -> nn.Module:
    model = calibrated()
    model.cache = [model[0].weight * 2]  # type: ignore[assignment, operator, list-item]
    return model


def pruner(**options: Any) -> Pruner:
    return Pruner(calibrated(), total_steps=5, **options)


def wrong(value: Any) -> Any:
    return value


M, C, F = errors.UnsupportedModel, errors.BadConfig, errors.FormatError
S = errors.UnsupportedShape
CASES: dict[str, tuple[Callable[[], object], type[TernaryOpsError], str]] = {
    "plan nothing": (lambda: tops.plan(wrong(None)), M, "got NoneType"),
    "plan a name": (lambda: tops.plan(net(), wrong("int8")), C, "TernaryConfig, got 'int8'"),
    "plan a rule": (lambda: tops.plan(net(), rules=wrong({"0": "int8"})), C, "rule '0' .*'int8'"),
    "plan rules": (lambda: tops.plan(net(), rules=wrong(["0"])), C, r"rules .*got \['0'\]"),
    "plan only": (lambda: tops.plan(net(), only=wrong(5)), C, "only .*got 5"),
    "plan budget": (
        lambda: tops.plan(net(), auto=True, budget=wrong(5), batches=[X]),
        C,
        "Budget, got 5",
    ),
    "plan channels": (
        lambda: tops.plan(net(), auto=True, budget=Budget(ms=5.0), batches=[WIDE]),
        M,
        r"\[2, 5, 9, 9\].* got 5 channels",
    ),
    "plan values": (lambda: Plan.from_dict({"a": 1}), C, "to_dict"),
    "config values": (lambda: tops.TernaryConfig.from_dict(wrong(5)), C, "Mapping, got 5"),
    "quantize_ a name": (lambda: tops.quantize_(net(), wrong("int8")), C, "got 'int8'"),
    "calibrate nothing": (
        lambda: tops.calibrate(quantized(), wrong(None)),
        C,
        "batches .*got None",
    ),
    "calibrate an image": (lambda: tops.calibrate(net_of_floats(), X), M, r"shape \[3, 9, 9\]"),
    "calibrate rules": (lambda: tops.calibrate(quantized(), [X], rules=wrong("0")), C, "got '0'"),
    "calibrate percentile": (
        lambda: tops.calibrate(quantized(), [X], percentile=wrong("a")),
        C,
        "got 'a'",
    ),
    "calibrate a network that fails": (
        lambda: tops.calibrate(broken(), [X]),
        M,
        r"(?s)shape \[2, 3, 9, 9\], got RuntimeError: Sizes of tensors",
    ),
    "compile channels": (
        lambda: tops.compile(net(), WIDE),
        M,
        r"shape \[2, 5, 9, 9\], got Runtime",
    ),
    "compile a network that fails": (lambda: tops.compile(Broken(), X), M, "got RuntimeError"),
    "compile a branch": (lambda: tops.compile(Branch(), X), M, "control flow"),
    "compile a lock": (lambda: tops.compile(Locked(), X), M, "copied, got cannot pickle"),
    "compile a history": (lambda: tops.compile(cached(), X), M, "computation: cache"),
    "compile a function": (lambda: tops.compile(wrong(torch.relu), X), M, "got builtin_function"),
    "compile islands": (lambda: tops.compile(net(), WIDE, islands=True), M, r"\[2, 5, 9, 9\]"),
    "save a history": (lambda: tops.save(cached(), "x"), M, "computation: cache"),
    "report a name": (lambda: tops.report(net(), wrong("x")), S, "got str"),
    "report channels": (lambda: tops.report(net(), WIDE), M, r"\[2, 5, 9, 9\]"),
    "report against": (
        lambda: tops.report(net(), X, against=nn.Conv2d(5, 3, 3)),
        M,
        r"\[2, 3, 9, 9\]",
    ),
    "sensitivity parts": (lambda: tops.sensitivity(calibrated(), [X], wrong(5)), C, "got 5"),
    "equalize_ channels": (lambda: quantize.equalize_(net(), [WIDE]), M, r"\[2, 5, 9, 9\]"),
    "equalize_ a branch": (lambda: quantize.equalize_(Branch(), [X]), M, "control flow"),
    "recalibrate_batchnorm_": (
        lambda: quantize.recalibrate_batchnorm_(net(), [WIDE]),
        M,
        r"\[2, 5, 9, 9\]",
    ),
    "reorder_channels_": (lambda: tops.reorder_channels_(net(), wrong("x")), M, "got str"),
    "reconstruct_": (lambda: reconstruct_(net(), [WIDE], 0.5), M, r"\[2, 5, 9, 9\]"),
    "Pruner schedule": (lambda: pruner(schedule=wrong(["a"])), C, r"got \['a'\]"),
    "Pruner zeros": (lambda: pruner(zeros=wrong("a")), C, "zeros .*got 'a'"),
    "Pruner freeze_at": (lambda: pruner(freeze_at=wrong("a")), C, "freeze_at .*got 'a'"),
    "Pruner optimizer": (lambda: pruner(optimizer=wrong("sgd")), C, "Optimizer, got 'sgd'"),
    "Pruner skip": (lambda: pruner(skip=wrong(5)), C, "skip .*got 5"),
    "Pruner state": (lambda: pruner().load_state_dict(wrong(None)), F, "state_dict"),
    "Distillation": (lambda: Distillation(share=wrong("a")), C, "share .*got 'a'"),
    "from_float of a convolution": (
        lambda: tops.nn.TernaryConv2d.from_float(wrong(nn.ReLU())),
        C,
        r"Conv2d, got ReLU\(\)",
    ),
    "from_float of a linear layer": (
        lambda: tops.nn.TernaryLinear.from_float(wrong(nn.ReLU())),
        C,
        r"Linear, got ReLU\(\)",
    ),
    "profile": (lambda: tops.compile(net(), X).profile(X.numpy(), wrong("a")), C, "got 'a'"),
}


def net_of_floats() -> nn.Module:
    """Its first layer is torch's own."""
    model = net()
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(), only="3"))
    return model


@pytest.mark.parametrize("name", CASES)
def test_bad_arguments(name: str) -> None:
    call, kind, words = CASES[name]
    with pytest.raises(kind, match=words) as caught:
        call()
    _check_words(str(caught.value))


def _check_words(message: str) -> None:
    assert message.startswith("expected "), message
    assert ", got " in message and ";\n  " in message, message
    assert not any(words in message for words in FOREIGN), message


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"PK\x03\x04" + bytes(40), b"\x08" * 64])
def test_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    readers: list[Callable[[], object]] = [
        lambda: tops.load(file, net()),
        lambda: runtime.load(file),
        lambda: Checkpoint(file, {}).load({}),
    ]
    for read in readers:
        with pytest.raises(F, match="file") as caught:
            read()
        _check_words("expected " + str(caught.value).partition("expected ")[2])


def test_files_of_another_kind_say_so(tmp_path: Path) -> None:
    """Not "p.safetensors holds weights", which the message stated as a fact."""
    tops.compile(net(), X).save(tmp_path / "p")
    tops.save(calibrated(), tmp_path / "w")
    with pytest.raises(F, match=r"^expected weights in .*p, got kind 'program';"):
        tops.load(tmp_path / "p", net())
    with pytest.raises(F, match=r"^expected a program in .*w, got kind 'weights';"):
        runtime.load(tmp_path / "w")


def test_the_form_of_every_message() -> None:
    assert need("a share", 5, "Correct it.") == "expected a share, got 5;\n  Correct it."
    with pytest.raises(S, match=r"^expected an input \[.* of this program"):
        tops.compile(net(), X)(np.zeros((1, 5, 9, 9), np.float32))


# Verbs that make a clause of what should be a thing.
CLAUSE = re.compile(
    r"\b(asks|belongs|calls|compares|computes|covers|ends|fits?|gives|goes|has|have|holds|is|are|knows"
    r"|lies?|makes|maps|must|needs?|quantizes|returns|rises?|runs|starts|takes?|treats)\b"
)
# What may have a verb of its own: parts behind these words, infinitives, and what explains.
WITHIN = re.compile(r"\b(that|which|where|whose|who|as)\b.*|\bto \w+|\(.*?\)|: .*")


def _said(function: ast.FunctionDef) -> Iterator[str]:
    """What calls of `need` in a function expect, by way of a name too."""
    within = list(ast.walk(function))
    for node in within:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":
            what = node.args[0]
            yield ast.unparse(what)
            for other in within:
                if isinstance(other, ast.Assign) and isinstance(what, ast.Name):
                    yield from _assigned(other, what.id)


def _assigned(node: ast.Assign, name: str) -> Iterator[str]:
    """What is assigned to a name, among others or alone."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        else:
            pairs = [(target, node.value)]
        for one, value in pairs:
            if isinstance(one, ast.Name) and one.id == name:
                yield ast.unparse(value)


def clause(said: str) -> bool:
    """Is a message's expectation, as code, a sentence instead of a thing?"""
    return CLAUSE.search(WITHIN.sub("", re.sub(r"\{[^{}]*\}", "X", said))) is not None


@pytest.mark.parametrize("said", ["x is finite", "crow_indices rise", "a file {a} starts with {b}"])
def test_a_clause_is_known_from_a_thing(said: str) -> None:
    assert clause(said) and not clause(f"a network that {said}")


def test_messages_name_things_not_clauses() -> None:
    """What is expected is a noun: "expected a use of every value, got node 3 that is not"."""
    wrong = []
    package = Path(tops.__file__).parent
    for path in sorted([*package.rglob("*.py"), *(ROOT / "kernels").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                wrong += [f"{path.name}: {said}" for said in _said(node) if clause(said)]
    assert not wrong, "\n".join(wrong)

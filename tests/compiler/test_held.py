# SPDX-License-Identifier: Apache-2.0
"""Models as people hold them: keyword inputs, structured outputs, wrappers, Hugging Face."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel
from ternary_ops.prune import Pruner
from ternary_ops.quantize import (
    correct_bias_,
    equalize_,
    fallback_,
    fold_batchnorm_,
    recalibrate_batchnorm_,
    reorder_channels_,
)


def _images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


@dataclass
class Output:
    """What a vision model of Hugging Face returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Encoder(nn.Module):
    """Checks its channels, as such models do."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Conv2d(channels, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        if pixels.shape[1] != self.channels:
            raise ValueError("another number of channels")
        return OrderedDict(last=F.relu(self.second(F.relu(self.norm(self.first(pixels))))))


class Twin(nn.Module):
    """The calling convention of Hugging Face's classifiers, by hand."""

    def __init__(self, hidden: bool = False) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        self.hidden = hidden

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        features = self.encoder(pixel_values)["last"]
        logits = self.classifier(features)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        hidden = (features,) if self.hidden else None
        if return_dict is False:
            return logits if hidden is None else (logits, *hidden)
        return Output(loss, logits, hidden)


def _logits(model: nn.Module, x: Tensor) -> np.ndarray[Any, Any]:
    made = model(pixel_values=x)
    return (made if isinstance(made, Tensor) else made.logits).detach().numpy()


def _settled(model: nn.Module) -> nn.Module:
    """With statistics of images."""
    model.train()
    for seed in range(3):
        model(_images(8, seed))
    return model.eval()


def _whole_path(model: nn.Module, x: Tensor) -> None:
    """plan, quantize_, calibrate, one step of training, compile, run; the float program too."""
    expected = _logits(model.eval(), x)
    np.testing.assert_allclose(
        tops.compile(model, x, output="logits")(x.numpy()), expected, 0, 1e-4
    )
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    tops.calibrate(
        model, [{"pixel_values": _images(8, s), "labels": torch.zeros(8)} for s in (1, 2)]
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model.train()
    model(pixel_values=x, labels=torch.arange(len(x)) % 2).loss.backward()
    optimizer.step()
    tops.calibrate(model.eval(), [_images(8, 3)])
    program = tops.compile(model, {"pixel_values": x})
    assert any(value.y is not None for value in program.graph.values)
    exact = _logits(model, x)
    error = np.linalg.norm(program(x.numpy()) - exact) / np.linalg.norm(exact)
    assert error < 0.05, error


def test_the_calling_convention_of_hugging_face() -> None:
    torch.manual_seed(0)
    _whole_path(_settled(Twin()), _images())


def test_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, from a configuration: nothing is downloaded."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = transformers.AutoModelForImageClassification.from_config(config)
    _whole_path(_settled(model), _images())


class _Named(NamedTuple):
    main: Tensor
    extra: Tensor


class _Returns(nn.Module):
    """One convolution whose result `make` packs; its input is keyword only, behind an option."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3), make

    def forward(self, scale: float = 2.0, *, image: Tensor) -> Any:
        y = F.relu(self.conv(image))
        return self.make(y * scale, y)


_RETURNS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str | None]] = {
    "tensor": (lambda a, b: a, None),
    "dict of one": (lambda a, b: {"a": a, "none": None}, None),
    "dict": (lambda a, b: {"b": b, "a": a}, "a"),
    "nested": (lambda a, b: {"b": b, "all": [b, (b, a)]}, "all.1.1"),
    "tuple": (lambda a, b: (a, b), "0"),
    "namedtuple": (_Named, "main"),
    "dataclass": (lambda a, b: Output(b, a), "logits"),
}


@pytest.mark.parametrize("name", _RETURNS)
def test_what_a_network_returns(name: str) -> None:
    make, output = _RETURNS[name]
    torch.manual_seed(1)
    model, x = _Returns(make), _images()
    expected = (2 * F.relu(model.conv(x))).detach().numpy()
    for example in (x, {"image": x}, {"scale": 2.0, "image": x}):
        program = tops.compile(model, example, output=output)
        np.testing.assert_allclose(program(x.numpy()), expected, 0, 1e-5)
    constant = tops.compile(model, {"scale": 3.0, "image": x}, output=output)
    np.testing.assert_allclose(constant(x.numpy()), 1.5 * expected, 0, 1e-5)
    if output is not None:
        with pytest.raises(UnsupportedModel, match=rf"(?s)got .*{output}.*output=NAME"):
            tops.compile(model, x)
    with pytest.raises(UnsupportedModel, match="output 'wrong', got "):
        tops.compile(model, x, output="wrong")


def test_several_inputs_are_refused_by_name() -> None:
    class Two(nn.Module):
        def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
            return left + right * scale

    x = _images()
    for example in (x, (x, x), {"left": x, "right": x}):
        with pytest.raises(UnsupportedModel, match="one tensor input, got left, right"):
            tops.compile(Two(), example)
    with pytest.raises(UnsupportedModel, match="got middle"):
        tops.compile(Two(), {"left": x, "middle": x})
    with pytest.raises(UnsupportedModel, match="'pixel_values', and labels, got image, labels"):
        quantized = _quantized(Twin())
        tops.calibrate(quantized, [{"image": x, "labels": torch.zeros(4)}])


def test_a_branch_on_channels_is_decided() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.shape[1] == 3 else x

    model, x = Branches(), _images()
    program = tops.compile(model, x)
    np.testing.assert_allclose(program(x.numpy()), model(x).detach(), atol=1e-5)
    assert program.output_shape((5, 3, 8, 20)) == (5, 4, 6, 18)  # other sizes stay free


def _quantized(model: nn.Module) -> nn.Module:
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.5)))
    return model


def _calibrated() -> nn.Module:
    torch.manual_seed(2)
    model = _quantized(_settled(Twin()))
    tops.calibrate(model, [_images(8, 1)])
    return model


def _optimized(model: nn.Module) -> nn.Module:
    made: Any = torch.compile(model, backend="eager")
    return made  # type: ignore[no-any-return]


_WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": _optimized,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "DistributedDataParallel": lambda model: nn.parallel.DistributedDataParallel(model),
}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", _WRAPPERS)
def test_wrappers_are_looked_into(name: str) -> None:
    """Training a wrapped network and compiling it is what it is without the wrapper."""
    wrap, x = _WRAPPERS[name], _images()
    torch.manual_seed(2)
    model = wrap(_settled(Twin()))
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.5)))
    tops.calibrate(model, [_images(8, 1)])
    plain, made = _calibrated(), []
    for network in (model, plain):
        inner = next(m for m in network.modules() if isinstance(m, Twin))
        optimizer = torch.optim.SGD(inner.parameters(), 0.01)
        pruner = Pruner(network, total_steps=2, optimizer=optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            network.train()(x, torch.arange(len(x))).loss.backward()
            optimizer.step()
            pruner.step()
        made.append(tops.compile(network, x)(x.numpy()))
    np.testing.assert_array_equal(*made)


def test_every_public_function_looks_into_wrappers(tmp_path: Path) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        return nn.DataParallel(_optimized(model))

    x = _images()
    torch.manual_seed(2)
    model = wrap(_settled(Twin()))
    plain = _calibrated()
    plan = tops.plan(model, tops.TernaryConfig(zeros=0.5))
    assert [row.name for row in plan] == ["encoder.first", "encoder.second", "classifier.2"]
    recalibrate_batchnorm_(wrap(copy.deepcopy(plain)), [_images(8, 2)])
    equalize_(wrap(_settled(Twin())), [_images(8, 2)])
    reorder_channels_(wrap(_settled(Twin())), x)
    tops.quantize_(model, plan)
    tops.calibrate(model, [_images(8, 1)])
    expected = tops.compile(plain, x)(x.numpy())
    np.testing.assert_array_equal(tops.compile(model, x)(x.numpy()), expected)
    assert len(tops.sensitivity(model, [x]).rows) == len(tops.sensitivity(plain, [x]).rows)
    fallback_(wrap(copy.deepcopy(plain)), [x], min_sqnr=-100.0)
    correct_bias_(wrap(copy.deepcopy(plain)), wrap(_settled(Twin())), [x])
    report = tops.report(model, x, against=wrap(_settled(Twin())))
    assert report.against is not None
    tops.save(model, tmp_path / "w")
    loaded = tops.load(tmp_path / "w", wrap(Twin()))
    np.testing.assert_array_equal(tops.compile(loaded, x)(x.numpy()), expected)
    assert fold_batchnorm_(wrap(copy.deepcopy(plain))) == ["encoder.norm"]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, total_steps=4, optimizer=optimizer)
    other = Pruner(plain, total_steps=4)
    other.load_state_dict(pruner.state_dict())
    packed = tops.pack_(model, allow_unfinished=True)
    np.testing.assert_array_equal(tops.compile(packed, x)(x.numpy()), expected)


def test_auxiliary_heads() -> None:
    """Outputs that there are in training alone, as of GoogLeNet and Inception."""

    class Auxiliary(Twin):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            features = self.encoder(x)["last"]
            logits: Tensor = self.classifier(features)
            return _Named(logits, self.aux(features)) if self.training else logits

    torch.manual_seed(5)
    model, x = _settled(Auxiliary()), _images()
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
    main, extra = model.train()(x)
    (main.square().mean() + extra.square().mean()).backward()
    tops.calibrate(model, [_images(8, 1)])
    assert model.training
    program = tops.compile(model, x)
    exact = model.eval()(x).detach().numpy()
    assert np.linalg.norm(program(x.numpy()) - exact) < 0.05 * np.linalg.norm(exact)


def test_sharded_and_scripted_networks_are_named() -> None:
    scripted = torch.jit.trace(nn.Conv2d(3, 4, 3), _images())
    place = {"__module__": "torch.distributed.fsdp.fully_sharded_data_parallel"}
    sharded = type("FullyShardedDataParallel", (nn.Module,), place)()
    for call in (tops.plan, tops.quantize_, fold_batchnorm_, tops.pack_):
        for model, got in (
            (scripted, "Module"),
            (sharded, "FullyShardedDataParallel"),
            (Twin, "the class Twin"),
            ({}, "dict"),
        ):
            with pytest.raises(UnsupportedModel, match=rf"torch.nn.Module .*got .*{got}"):
                call(model)  # type: ignore[operator]


def test_a_pruner_reads_states_made_around_a_wrapper() -> None:
    """Earlier versions wrote the names of the wrapper's layers."""
    plain = _calibrated()
    state = Pruner(plain, total_steps=4).state_dict()
    for row in state["plan"]["layers"]:
        row[0] = f"module._orig_mod.{row[0]}"
    state["latent"] = {f"module._orig_mod.{k}": v for k, v in state["latent"].items()}
    Pruner(plain, total_steps=4).load_state_dict(state)


def test_what_cannot_be_copied_is_named(tmp_path: Path) -> None:
    model = _calibrated()
    model.encoder.cache = [model.encoder.first.weight * 2]  # type: ignore[union-attr, operator]
    for call in (lambda: tops.compile(model, _images()), lambda: tops.save(model, tmp_path / "w")):
        with pytest.raises(UnsupportedModel, match="encoder.cache"):
            call()

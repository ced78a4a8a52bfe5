# SPDX-License-Identifier: Apache-2.0
"""Networks of torchvision and timm by their names."""

from __future__ import annotations

import sys

import pytest
from library_networks import small, stand_in_libraries

from ternary_ops.errors import BadConfig, MissingExtra, UnsupportedModel
from ternary_ops.models import zoo


@pytest.fixture()
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_libraries(monkeypatch)


def test_networks_of_libraries(libraries: None) -> None:
    assert zoo.zoo_builder("torchvision:resnet18", 7)()[-1].out_features == 7
    assert zoo.zoo_builder("timm:tiny", 5, channels=1)()[0].in_channels == 1
    state = small(12).state_dict()
    assert zoo.zoo_builder("torchvision:resnet18", 7, weights=state)()[-1].out_features == 12
    trained = zoo.zoo_builder("torchvision:resnet18", 7, trained=True)()
    assert trained[-1].out_features == 7 and float(trained[0].weight.detach().min()) == 0.5
    for text, channels, taught, kind, said in (
        ("torchvision:resnet19", 3, False, BadConfig, "resnet18"),
        ("torchvision:resnet18", 1, False, BadConfig, "3 channels"),
        ("timm:tiny", 3, True, UnsupportedModel, "no network"),
    ):
        with pytest.raises(kind, match=said):
            zoo.zoo_builder(text, 7, channels, trained=taught)()


def test_a_bare_name_is_that_of_the_one_library_that_has_it(
    libraries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert zoo.full_name("tiny") == "timm:tiny"
    assert zoo.full_name("resnet34") == "torchvision:resnet34"
    assert zoo.full_name("timm:other") == "timm:other"
    with pytest.raises(BadConfig, match="none in torchvision and timm"):
        zoo.full_name("resnet")
    monkeypatch.setattr(sys.modules["timm"], "list_models", lambda: ["resnet34"])
    with pytest.raises(BadConfig, match=r"(?s)torchvision and timm;.*torchvision:resnet34 or timm"):
        zoo.full_name("resnet34")
    for name in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match="pip install torchvision timm"):
        zoo.full_name("resnet34")


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match="pip install timm"):
        zoo.zoo_builder("timm:resnet18", 10)

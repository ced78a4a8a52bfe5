# SPDX-License-Identifier: Apache-2.0
"""bench/zoo.py: models in processes of their own, every way they can end, and the page of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkout import BENCH, ROOT
from scripts import script
from torch import Tensor, nn

LIST = "# source, model, input size, mark\n" + "".join(
    f"ours {name}\n" for name in ("good 8 -", "odd 8 - refused", "dies 8 a", "slow 8 a")
)


class Ends(nn.Module):
    """A part that does something else than compute."""

    def __init__(self, how: Callable[[], object]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """The input, after that."""
        self.how()
        return x


class Odd(nn.Module):
    """Without a program form."""

    def forward(self, x: Tensor) -> Tensor:
        """Sorted rows."""
        return x.cummax(3)[0]


def network(*parts: nn.Module) -> nn.Module:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *parts
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "good": network,
    "odd": lambda: network(Odd()),
    "dies": lambda: network(Ends(lambda: os.kill(os.getpid(), 9))),
    "slow": lambda: network(Ends(lambda: time.sleep(60))),
}


@pytest.fixture()
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, with these networks in place of the libraries'."""
    monkeypatch.setenv("TERNARY_OPS_DATA", "")
    made = script("zoo", monkeypatch)
    import _zoo_model

    monkeypatch.setattr(_zoo_model, "build", lambda source, name: NETWORKS[name]())
    monkeypatch.setattr(made, "RESULTS", tmp_path)
    monkeypatch.setattr(made, "_PACKAGES", ())
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    return made


def run(zoo: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    argv = ["zoo.py", "--models", str(folder / "list.txt"), "--out", "z.csv", *more]
    monkeypatch.setattr(sys, "argv", argv)
    code: int = zoo.main()
    return code


def test_every_end_of_a_process_is_a_row(
    zoo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(zoo, monkeypatch, tmp_path, "--only", "ours:good", "--quick") == 0
    assert zoo.read_rows(tmp_path / "z.csv")[0]["int8_state"] == ""  # measured whole below
    three = "ours:good,ours:odd,ours:dies"
    assert run(zoo, monkeypatch, tmp_path, "--only", three, "--seconds", "120") == 1
    assert run(zoo, monkeypatch, tmp_path, "--seconds", "2") == 1
    good, odd, dies, slow = zoo.read_rows(tmp_path / "z.csv")
    assert good["state"] == good["int8_state"] == "ok" and good["islands_state"] == ""
    assert float(good["error"]) < 1e-5 and float(good["int8_sqnr"]) > 20
    assert float(good["ms"]) > 0 and float(good["torch_ms"]) > 0 and int(good["bytes"]) > 500
    assert odd["state"] == "refused" and "cummax()" in odd["reason"]
    assert odd["islands_state"] == "ok" and odd["islands_share"] == "0.0"
    assert dies["state"] == "crash" and "SIGKILL" in dies["reason"]
    assert slow["state"] == "timeout"
    text = capsys.readouterr().out
    assert "float32, all: 1 of 4 ok, 1 refused, 1 crash, 1 timeout" in text
    (tmp_path / "list.txt").write_text("ours good 8 -\nours odd 8 -\n", encoding="utf-8")
    assert run(zoo, monkeypatch, tmp_path, "--only", "ours:*") == 1  # nothing is left to measure
    assert "1/" not in capsys.readouterr().out
    assert len(zoo.read_rows(tmp_path / "z.csv")) == 4


def test_random_networks_hide_nothing(zoo: Any) -> None:
    from _zoo_model import randomize_

    torch.manual_seed(0)
    model = network()
    nn.init.zeros_(model[1].weight)
    randomize_(model, torch.randn(8, 3, 8, 8))
    norm = model[1]
    assert norm.momentum == 0.1 and not any(m.training for m in model.modules())
    assert all(float(p.detach().std()) > 0 and bool((p != 0).all()) for p in model.parameters())
    assert float(norm.running_mean.abs().min()) > 0
    assert float((norm.running_var - 1).abs().min()) > 0


def test_without_the_libraries_their_names_are_said(
    zoo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zoo, "_PACKAGES", ("torch", "no_such_library"))
    with pytest.raises(SystemExit, match="no_such_library"):
        run(zoo, monkeypatch, tmp_path)


def test_a_family_is_the_letters_that_a_name_begins_with(
    zoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _zoo_list

    registry = SimpleNamespace(_model_to_module={"tf_mixnet_s": "net", "resnet18d": "resnet"})
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "timm.models", SimpleNamespace(_registry=registry))
    assert _zoo_list._family("timm", "tf_mixnet_s") == ("timm", "net", "tf_mixnet")
    assert _zoo_list._family("timm", "resnet18d") == ("timm", "resnet", "resnet")
    torchvision = {n: _zoo_list._family("torchvision", n)[1] for n in ("regnet_x_8gf", "vgg16_bn")}
    assert torchvision == {"regnet_x_8gf": "regnet_x", "vgg16_bn": "vgg"}


def test_page_readme_and_table_agree(zoo: Any) -> None:
    from _zoo_list import read_list
    from _zoo_report import PAGE, README, page, with_headline

    rows = zoo.read_rows(BENCH / "results" / "zoo.csv")
    assert PAGE == ROOT / "docs" / "models.md"
    hint = "python bench/zoo.py --report"
    assert PAGE.read_text(encoding="utf-8") == page(rows), hint
    text = README.read_text(encoding="utf-8")
    assert text == with_headline(text, rows) and "<!-- zoo -->" in text, hint
    listed = {(m.source, m.name) for m in read_list(zoo.LIST)}
    assert {(row["source"], row["name"]) for row in rows} <= listed

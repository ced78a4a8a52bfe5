# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel, two processes over gloo: every rank has the masks and codes that one
process gets from the whole batch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkout import SUPPORT
from distributed_worker import CASES, filters, train
from machines import HANGS
from topk_problem import OPTIONS, trained

WORKER = SUPPORT / "distributed_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_agree_with_each_other_and_with_one_process(
    ranks: list[dict[str, Any]], name: str, tmp_path: Path
) -> None:
    alone = train(CASES[name], tmp_path / "c.pt")
    first, second = (rank[name] for rank in ranks)
    marks = [key for key in alone if key.endswith("marks")]
    assert marks and any(bool((alone[key] > 0).any()) for key in marks)  # some are pruned
    for key, value in alone.items():
        assert torch.equal(first[key].nan_to_num(), second[key].nan_to_num()), key
        if key.endswith(("marks", "phase_code")):
            assert torch.equal(first[key], value), key
        else:
            torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_ranks_remove_the_filters_that_one_process_removes(ranks: list[dict[str, Any]]) -> None:
    alone = filters()
    first, second = (rank["filters"] for rank in ranks)
    assert alone["0.weight"].shape[0] < 8 or alone["2.weight"].shape[0] < 12
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        if key.startswith("kept"):
            assert torch.equal(first[key], value), key
        else:  # heads compute in float32
            torch.testing.assert_close(first[key], value, rtol=1e-3, atol=1e-5)


def test_every_rank_has_the_costs_that_the_first_one_measured(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["costs"] for rank in ranks)
    assert first == second  # milliseconds to the last digit: two measurements never agree so
    assert set(first[0]) == {"2", "4"} and "4.inner outside of it" in first[1]


@pytest.mark.parametrize("name", list(OPTIONS))
def test_ranks_exchange_the_largest_entries_of_their_gradients(
    ranks: list[dict[str, Any]], name: str
) -> None:
    first, second, alone = (*(rank[f"topk {name}"] for rank in ranks), trained(OPTIONS[name]))
    for one, other, wanted in zip(first, second, alone, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-14)


def test_a_resumed_run_equals_one_that_was_not_cut_off(tmp_path: Path) -> None:
    whole = train(CASES["resumed"]._replace(stop=0), tmp_path / "c.pt")
    resumed = train(CASES["resumed"], tmp_path / "c.pt")
    for key, value in whole.items():
        assert torch.equal(resumed[key].nan_to_num(), value.nan_to_num()), key

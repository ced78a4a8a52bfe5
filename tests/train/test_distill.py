# SPDX-License-Identifier: Apache-2.0
"""Distillation against its formula, and training that goes on where it was cut off."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel, UnsupportedShape
from ternary_ops.models import Spach, SpachConfig, digits_resnet
from ternary_ops.prune import Pruner
from ternary_ops.quantize import TernaryConfig, calibrate, quantize_
from ternary_ops.study.fit import fit
from ternary_ops.train.augment import Augmentation, CachedLogits
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation


def pair() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(6, 1, 8, 8), torch.randint(0, 10, (6,))
    return digits_resnet(8), digits_resnet(12), x, y


def test_the_loss_is_its_formula() -> None:
    student, teacher, x, y = pair()
    t, share = 3.0, 0.6
    value = Distillation(teacher, t, share, label_smoothing=0.1)(student, x, y)
    ours, theirs = student(x), teacher.eval()(x)
    p = (theirs / t).softmax(1)
    kl = (p * (p.log() - (ours / t).log_softmax(1))).sum(1).mean()
    wanted = (1 - share) * F.cross_entropy(ours, y, label_smoothing=0.1) + share * t * t * kl
    torch.testing.assert_close(value, wanted)
    known = Distillation(None, t, share, label_smoothing=0.1)(student, x, y, theirs.half())
    torch.testing.assert_close(known, wanted, rtol=1e-3, atol=1e-3)
    labels = Distillation(label_smoothing=0.1)(student, x, y)
    torch.testing.assert_close(labels, F.cross_entropy(student(x), y, label_smoothing=0.1))


def test_features_are_compared_by_attention_and_teach_the_student_alone() -> None:
    student, teacher, x, y = pair()
    pairs = {"layer1": "layer1", "layer2": "layer2"}
    both = Distillation(teacher, features=pairs, feature_share=50.0)
    value = both(student, x, y)
    plain = Distillation(teacher)(student, x, y)
    maps: list[Any] = []
    for network in (student, teacher.eval()):
        f = network.relu(network.bn1(network.conv1(x)))
        for name in ("layer1", "layer2"):
            f = getattr(network, name)(f)
            maps.append(F.normalize(f.square().mean(1).flatten(1), dim=1))
    gap = ((maps[0] - maps[2]).square().mean() + (maps[1] - maps[3]).square().mean()) / 2
    torch.testing.assert_close(value, plain + 50.0 * gap, rtol=1e-4, atol=1e-5)
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert float(student.layer1[0].conv1.weight.grad.abs().sum()) > 0
    assert not student.layer1._forward_hooks and not teacher.layer1._forward_hooks


def test_what_distillation_refuses() -> None:
    student, teacher, x, y = pair()
    with pytest.raises(BadConfig, match="temperature"):
        Distillation(teacher, temperature=0.0)
    with pytest.raises(BadConfig, match="teacher=None"):
        Distillation(features={"layer1": "layer1"})
    with pytest.raises(UnsupportedModel, match="'layer9'"):
        Distillation(teacher, features={"layer1": "layer9"})
    with pytest.raises(UnsupportedModel, match="student"):
        Distillation(teacher, features={"layer9": "layer1"})(student, x, y)
    with pytest.raises(UnsupportedShape, match="height and width"):
        Distillation(teacher, features={"layer1": "layer2"})(student, x, y)
    with pytest.raises(UnsupportedShape, match="equal logits"):
        Distillation(digits_resnet(8, num_classes=7))(student, x, y)


def token_pair() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    stages = ((("conv", 1), ("attention", 1)), (("attention", 1),))
    teacher = Spach(SpachConfig(8, stages, 4, heads=2, num_classes=10, image_size=16))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    student = copy.deepcopy(teacher)
    quantize_(student, TernaryConfig(zeros=0.6))
    return student, teacher, torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))


def test_tokens_are_compared_when_each_is_normalized() -> None:
    student, teacher, x, y = token_pair()
    with torch.no_grad():  # no step of the schedule: ternary at once
        student.stages[0].blocks[1].channel.fc1.weight.mul_(0.5)
    distill = Distillation(teacher, tokens=["stages.?.blocks.*.norm2", "stages.1"], token_share=3.0)
    assert distill.tokens == [
        *("stages.0.blocks.0.norm2", "stages.0.blocks.1.norm2"),
        *("stages.1", "stages.1.blocks.0.norm2"),
    ]
    value = distill(student, x, y)
    found: dict[str, list[Tensor]] = {}
    for network in (student, teacher.eval()):
        handles = [
            network.get_submodule(name).register_forward_hook(
                lambda m, given, made, name=name: found.setdefault(name, []).append(made)
            )
            for name in distill.tokens
        ]
        network(x)
        for handle in handles:
            handle.remove()
    gaps = []
    for a, b in found.values():
        t, u = ((v - v.mean(-1, True)) / (v.var(-1, False, True) + 1e-5).sqrt() for v in (a, b))  # type: ignore[call-overload]
        gaps.append((t - u).square().mean())
    assert min(float(g.detach()) for g in gaps[1:]) > 1e-4
    wanted = Distillation(teacher)(student, x, y) + 3.0 * torch.stack(gaps).mean()
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)
    value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert float(student.stages[1].blocks[0].spatial.qkv.weight.grad.abs().sum()) > 0


def test_training_with_tokens_brings_a_student_to_its_parent() -> None:
    """Through fit, beside kept logits, which are no reason to leave the teacher's tokens out."""
    student, teacher, x, y = token_pair()
    images = Augmentation(x, reach=0)
    course = TrainConfig(20, 0.01, batch=4)
    distill = Distillation(teacher, share=1.0, tokens="stages.*.blocks.?")

    def apart(model: nn.Module) -> float:
        return float(Distillation(teacher, share=1.0, tokens="stages.*.blocks.?")(model, x, y))

    before = apart(student)
    logits = teacher.eval()(x).detach()
    optimizer = optimizer_for(student, course)
    fit(
        *(student, images, y, course, optimizer, distill),
        teacher=lambda view, chosen: logits[chosen],
    )
    assert apart(student) < 0.5 * before


def test_tokens_that_do_not_fit_are_refused() -> None:
    student, teacher, x, y = token_pair()
    with pytest.raises(BadConfig, match="'blocks'"):
        Distillation(teacher, tokens="blocks")
    with pytest.raises(BadConfig, match="features and tokens"):
        Distillation(tokens="stages.*")
    with pytest.raises(UnsupportedShape, match="N, L, C"):
        Distillation(teacher, tokens="head")(student, x, y)
    narrow = Spach(SpachConfig(4, ((("conv", 1),),), 4, num_classes=10, image_size=16))
    with pytest.raises(UnsupportedModel, match="student"):
        Distillation(teacher, tokens="stages.1")(narrow, x, y)
    with pytest.raises(UnsupportedShape, match="as wide"):
        Distillation(teacher, tokens="stages.0")(narrow, x, y)
    teacher.more = nn.Linear(3, 3)  # type: ignore[assignment]
    with pytest.raises(UnsupportedModel, match="student"):
        Distillation(teacher, tokens="more")(student, x, y)
    student.more = nn.Linear(3, 3)  # type: ignore[assignment]
    with pytest.raises(UnsupportedModel, match="the student runs, got more"):
        Distillation(teacher, tokens="more")(student, x, y)


def test_views_move_images_and_come_again() -> None:
    x = torch.arange(5 * 2 * 6 * 6, dtype=torch.float32).view(5, 2, 6, 6) + 1
    views = Augmentation(x, reach=2, flip=True, count=3)
    assert [views.number(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    chosen = torch.tensor([4, 1])
    taken = views.take(1, chosen)
    assert torch.equal(taken, views.take(1, torch.arange(5))[chosen])
    assert not torch.equal(taken, views.take(2, chosen))
    padded = F.pad(x, (2, 2, 2, 2))
    for number, image in zip(chosen, taken, strict=True):
        windows = [padded[number][:, a : a + 6, b : b + 6] for a in range(5) for b in range(5)]
        windows += [w.flip(2) for w in windows]
        assert sum(torch.equal(image, w) for w in windows) == 1
    rows = torch.randn(4, 3)
    assert torch.equal(Augmentation(rows).take(7, torch.tensor([2])), rows[2:3])


def test_kept_logits_are_the_teachers(tmp_path: Path) -> None:
    _, teacher, _, _ = pair()
    views = Augmentation(torch.randn(7, 1, 8, 8), count=2)
    kept = CachedLogits(teacher, views, tmp_path / "logits")
    chosen = torch.tensor([6, 0, 3])
    for view in (1, 0, 1):
        with torch.no_grad():
            wanted = teacher.eval()(views.take(view, chosen))
        torch.testing.assert_close(kept(view, chosen), wanted, rtol=2e-3, atol=2e-3)
    assert sorted(p.name for p in (tmp_path / "logits").iterdir()) == ["view0.npy", "view1.npy"]
    np.save(tmp_path / "logits" / "view1.npy", np.zeros((3, 10), np.float16))
    with pytest.raises(FormatError, match=r"\[7, classes\]"):
        CachedLogits(teacher, views, tmp_path / "logits")(1, chosen)


class Stopped(Exception):
    pass


def run(
    course: TrainConfig, file: Path | None, stop: int | None = None, about: str = "a"
) -> nn.Module:
    torch.manual_seed(1)
    model, x, y = digits_resnet(8), torch.randn(40, 1, 8, 8), torch.randint(0, 10, (40,))
    quantize_(model, TernaryConfig(zeros=0.6))
    optimizer = optimizer_for(model, course)
    pruner = Pruner(
        model,
        "one_cycle",
        course.steps(40),
        optimizer=optimizer,
        criterion="taylor",
        quantized_decay=0.1,
    )
    checkpoint = None if file is None else Checkpoint(file, {"run": about}, seconds=0.0)
    count = 0

    def on_step() -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise Stopped

    loss = Distillation(digits_resnet(12).eval())
    fit(
        *(model, Augmentation(x, count=2), y, course, optimizer, loss),
        pruner=pruner,
        calibration=x,
        checkpoint=checkpoint,
        on_step=on_step,
    )
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [3, 10, 17, 18, 19])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(
    tmp_path: Path, optimizer: str, stop: int
) -> None:
    course = TrainConfig(4, 0.02, batch=8, optimizer=optimizer, clip=1.0)
    whole = run(course, None)
    with pytest.raises(Stopped):
        run(course, tmp_path / "c.pt", stop)
    resumed = run(course, tmp_path / "c.pt")
    done = run(course, tmp_path / "c.pt")  # nothing is left to do
    for model in (resumed, done):
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(
                model.state_dict()[key], value, rtol=0, atol=0, equal_nan=True
            )


def test_ranges_are_set_at_the_freeze_and_learned_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Tensor]] = []

    def watched(model: nn.Module, batches: list[Tensor]) -> None:
        calibrate(model, batches)
        seen.append({n: p.detach().clone() for n, p in ranges(model)})

    def ranges(model: nn.Module) -> list[tuple[str, Tensor]]:
        return [(n, p) for n, p in model.named_parameters() if n.endswith("input_shift")]

    monkeypatch.setattr("ternary_ops.quantize.calibration_hook.calibrate", watched)
    model = run(TrainConfig(4, 0.02, batch=8, optimizer="sgd", weight_decay=1e-2), None)
    assert len(seen) == 1 and seen[0]
    for name, learned in ranges(model):
        assert bool(learned.isfinite().all()) and not torch.equal(learned, seen[0][name]), name


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "c.pt"
    course = TrainConfig(2, 0.02, batch=8)
    with pytest.raises(Stopped):
        run(course, file, 3)
    before = file.read_bytes()
    with pytest.raises(FormatError, match="of the run"):
        run(course, file, about="b")
    assert file.read_bytes() == before
    file.write_bytes(before[: len(before) // 2])
    with pytest.raises(FormatError, match="a checkpoint in"):
        run(course, file)
    file.write_bytes(b"")
    with pytest.raises(FormatError, match="a checkpoint in"):
        run(course, file)


def test_a_schedule_that_changed_is_refused_before_training(tmp_path: Path) -> None:
    """The checkpoint's own `about` may agree and the Pruner's plan still differ."""
    with pytest.raises(Stopped):
        run(TrainConfig(2, 0.02, batch=8), tmp_path / "c.pt", 3)
    with pytest.raises(FormatError, match="total_steps"):
        run(TrainConfig(3, 0.02, batch=8), tmp_path / "c.pt")


def test_training_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    from ternary_ops.errors import BadWeights

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.randn(8, 1, 2, 2), torch.randint(0, 3, (8,))
    x[5] = float("inf")
    course = TrainConfig(1, 0.1, batch=8)
    with pytest.raises(BadWeights, match="loss"):
        fit(
            model, Augmentation(x, reach=0), y, course, optimizer_for(model, course), Distillation()
        )
    assert all(bool(p.isfinite().all()) for p in model.parameters())

# SPDX-License-Identifier: Apache-2.0
"""State of a trainable layer beside its weight: mask, codes, phase and ranges.

All of it lies in float32 buffers that are exactly 0 initially, so that the state of an average of
networks over time can be read like that of one network. EMA, SWA and hand-written loops form sums
of states, of their float tensors at least, with positive weights. In such a sum

- an element that was never marked is exactly 0, and a marked one is not;
- a value that was written once and kept is multiplied by one factor (the fraction of the sum since
  then), and so is a 1 that was written beside it: the quotient is the value.

Integers have neither property: averaging loops truncate them, skip them, or fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, BadWeights, UnsupportedShape, need
from ternary_ops.nn import _marks
from ternary_ops.nn._integers import versions
from ternary_ops.nn._marks import OFFSET, PHASES, set_base
from ternary_ops.nn._old_state import rename, renewed, take_old
from ternary_ops.nn._views import StateView
from ternary_ops.nn.config import TernaryConfig

_WHOLE = 0.25  # how far a code of an average may lie from a whole number
_NEVER: tuple[tuple[int, int], ...] = ()  # no versions of a tensor
_BUFFERS = ("marks", "phase_code", "input_base", "output_base")
_Layer = TypeVar("_Layer", bound="LayerState")


class LayerState(nn.Module):
    """State of a trainable layer: four buffers, one parameter, and properties derived from them.

    marks         float32, weight's shape. Not frozen: > 0 where pruned, < 0 where a pruned weight
                  came back, else 0. Frozen: -(code + offset), positive where pruned
    phase_code    float32 [4]: 1 once real-valued training, ternary training, the freeze was
                  reached, and the offset of frozen codes. The last one reached is the phase; none:
                  a new layer, which is "ternary"
    input_base    float32 [3]: 1 once the range of the input is set, lo, hi; else zeros
    output_base   the same of the output's range
    input_shift   parameter [2]: what training adds to lo and hi of the input's range; 0 at first

    Derived: `phase`, `mask`, `codes`, `input_range`, `output_range`; setting one writes buffers.
    A range is learned as a shift because averages of parameters alone must make sense too: they
    start from 0, not from a range that was not set.
    """

    weight: nn.Parameter
    config: TernaryConfig
    marks: Tensor
    phase_code: Tensor
    input_base: Tensor
    output_base: Tensor
    input_shift: nn.Parameter

    def _new_state(self, weight: Tensor, learns_range: bool) -> None:
        """Register the state of a layer to which nothing has happened."""
        shift = torch.zeros(2, dtype=torch.float32, device=weight.device)
        self.input_shift = nn.Parameter(shift, requires_grad=learns_range)
        shapes = {
            "marks": weight.shape,
            "phase_code": (4,),
            "input_base": (3,),
            "output_base": (3,),
        }
        for name in _BUFFERS:
            zeros = torch.zeros(shapes[name], dtype=torch.float32, device=weight.device)
            self.register_buffer(name, zeros)
        # The phase again, for Python to branch on where reading a tensor would stop torch.compile,
        # and what was read last. `_current_phase` keeps it true.
        self._phase, self._seen, self._checked = "ternary", _NEVER, _NEVER

    @property
    def phase(self) -> str:
        """ "float", "ternary" or "frozen". Setting "frozen" fixes the codes of this moment."""
        self._look()
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        if phase not in PHASES:
            names = ", ".join(map(repr, PHASES))
            raise BadConfig(need(f"phase as one of {names}", repr(phase), "Pick one."))
        codes = self.integer_weight()[0] if phase == "frozen" else None
        self._write(phase, self.kept(), codes)

    @property
    def mask(self) -> Tensor:
        """bool, weight's shape; False where pruned."""
        return StateView.of(self.kept(), lambda mask: setattr(self, "mask", mask))

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self._check_shape("mask", mask)
        self._write(self.phase, mask, self._fixed_codes() if self._phase == "frozen" else None)

    @property
    def codes(self) -> Tensor:
        """int8, weight's shape; fixed in phase "frozen", before that zeros."""
        frozen = self.phase == "frozen"
        codes = self._fixed_codes() if frozen else torch.zeros_like(self.marks)
        return StateView.of(codes.to(torch.int8), lambda codes: setattr(self, "codes", codes))

    @codes.setter
    def codes(self, codes: Tensor) -> None:
        if self.phase != "frozen":
            do = 'Set phase = "frozen" first.'
            raise BadConfig(need('phase "frozen" where codes are set', repr(self._phase), do))
        self._check_shape("codes", codes)
        self._write("frozen", self.kept(), codes)

    @property
    def input_range(self) -> Tensor:
        """float32 [2], lo and hi of the quantized input; NaN: not set, it stays float."""
        write = lambda bounds: setattr(self, "input_range", bounds)  # noqa: E731
        return StateView.of(self._bounds(), write, self.input_shift)

    @input_range.setter
    @torch.no_grad()
    def input_range(self, bounds: Tensor | Sequence[float] | None) -> None:
        set_base(self.input_base, bounds)
        self.input_shift.zero_()

    @property
    def output_range(self) -> Tensor:
        """float32 [2]: range of what the layer and its fused epilogue produce, where no other layer
        owns it; NaN: not set.
        """
        write = lambda bounds: setattr(self, "output_range", bounds)  # noqa: E731
        return StateView.of(self.output_base[1:] / self.output_base[0], write)

    @output_range.setter
    @torch.no_grad()
    def output_range(self, bounds: Tensor | Sequence[float] | None) -> None:
        set_base(self.output_base, bounds)

    @torch.no_grad()
    def kept_ranges(self) -> Callable[[], None]:
        """A function that restores the current ranges, learned part included."""
        own = self.input_base, self.output_base, self.input_shift
        former = [tensor.detach().clone() for tensor in own]

        @torch.no_grad()
        def restore() -> None:
            for tensor, values in zip(own, former, strict=True):
                tensor.copy_(values)

        return restore

    def kept_phase(self) -> Callable[[], None]:
        """A function that restores the phase of now, as if it had not been left; in phase "frozen"
        codes are those of the weights at that moment.
        """
        phase, code = self.phase, self.phase_code.detach().clone()

        @torch.no_grad()
        def restore() -> None:
            self.phase = phase
            if phase != "frozen":
                self.phase_code.copy_(code)

        return restore

    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Codes int8 of weight's shape and scale float32 [O], in any phase."""
        raise NotImplementedError

    def kept(self) -> Tensor:
        """The mask as a plain tensor, to read: bool, weight's shape."""
        return self.marks <= 0

    def _fixed_codes(self) -> Tensor:
        """The codes of a frozen layer, float32."""
        frozen, offset = self.phase_code[2], self.phase_code[3]
        return (self.marks.abs() / frozen).round() - (offset / frozen).round()

    def _bounds(self) -> Tensor:
        """The input's range [2], differentiable in what is learned; NaN while it is not set."""
        return torch.addcdiv(self.input_shift, self.input_base[1:], self.input_base[0])

    def _check_codes(self) -> None:
        """Raise BadWeights where frozen codes are no whole numbers: mixed by an average."""
        values = self.marks.abs() / self.phase_code[2]
        mixed = ~((values - values.round()).abs() <= _WHOLE)
        if bool(mixed.any()):
            at = tuple(int(i) for i in mixed.nonzero()[0])
            value = float(values[at] - (self.phase_code[3] / self.phase_code[2]).round())
            do = (
                "Copy the network anew, or set phase = 'ternary' on its layers: codes then follow "
                "the averaged weights."
            )
            got = f"{value:.3f} at {at}: an average over networks of different codes"
            raise BadWeights(need("whole numbers as frozen codes", got, do))

    @torch.no_grad()
    def _write(self, phase: str, mask: Tensor, codes: Tensor | None) -> None:
        """Replace phase, mask and codes; codes are given where the phase is "frozen"."""
        mask = mask.to(self.marks.device) != 0
        offset = 0.0 if codes is None else OFFSET[self.config.weights]
        came_back = (self.marks != 0) & (self.phase_code[2] == 0)
        self.marks.copy_(_marks.make(mask, codes, offset, came_back))
        self.phase_code.copy_(torch.tensor(_marks.phase_values(phase, offset)))
        self._phase = phase

    def _look(self, always: bool = False) -> None:
        """Read the phase, unless a graph is being made or there is nothing to read.

        Reading it stops a GPU: while training there it is read, unless `always`, only when the
        buffer was changed in a way that PyTorch counts.
        """
        code = self.phase_code
        if torch.compiler.is_compiling() or code.is_meta:
            return
        if code.device.type == "cpu":
            self._phase = _marks.phase_of(code.tolist())
        elif always or not self.training or self._seen != versions(code):
            self._phase, self._seen = _marks.phase_of(code.tolist()), versions(code)

    def _current_phase(self) -> str:
        """The phase for forward; raises BadWeights for frozen codes that an average has mixed.

        A compiled graph holds for one phase: it fails where the buffer has come to say another, by
        a copy that did not go through this class.
        """
        code = self.phase_code
        if torch.compiler.is_compiling():
            # Not `not is_exporting()`: the torch.compile of PyTorch 2.10 takes that as True.
            if torch.compiler.is_dynamo_compiling():
                _assert_phase(code, self._phase)
            return self._phase
        self._look()
        if self._phase == "frozen" and not code.is_meta and self._checked != versions(self.marks):
            self._check_codes()
            self._checked = versions(self.marks)
        return self._phase

    def train(self: _Layer, mode: bool = True) -> _Layer:
        """As nn.Module's; a phase that was copied into the buffers is seen by compiled graphs."""
        super().train(mode)
        self._look(always=True)
        return self

    def _check_shape(self, name: str, value: Tensor) -> None:
        if value.shape != self.weight.shape:
            what = f"{name} of the weight's shape {list(self.weight.shape)}"
            raise UnsupportedShape(need(what, list(value.shape), "Pass one of that shape."))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        kept = {name: getattr(self, name) for name in _BUFFERS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != torch.float32:  # half would round codes: undo .half(), keep .to()
                setattr(self, name, before.to(after.device))
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        rename(state_dict, prefix)
        old = take_old(state_dict, prefix)
        if old is not None:
            new = renewed(old, self.config.weights)
            state_dict.update({prefix + name: tensor for name, tensor in new.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._look()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        rename(cast(dict[str, Any], self._parameters), "")
        held = cast(dict[str, Tensor], self._buffers | self._parameters)
        old = take_old(held, "")
        if old is None:
            return
        # A whole module pickled before: its parameters stay in their order, as optimizers count.
        new = renewed(old, self.config.weights)
        shift = nn.Parameter(new.pop("input_shift"), old["input_range"].requires_grad)
        kept = {"input_shift" if n == "input_range" else n: p for n, p in self._parameters.items()}
        self._parameters.clear()
        self._parameters.update({**kept, "input_shift": shift})
        self._buffers.clear()
        self._buffers.update(new)
        self._seen = self._checked = _NEVER
        self._look()


def _assert_phase(code: Tensor, phase: str) -> None:
    real, ternary, frozen, _ = (code > 0).unbind()
    now = {
        "frozen": frozen,
        "ternary": ~frozen & (ternary | ~real),
        "float": ~frozen & ~ternary & real,
    }[phase]
    do = "Call model.eval() or model.train() after copying a state into it."
    said = need(f"phase {phase!r}, which this graph was compiled for", "another", do)
    torch._assert_async(now, said.replace("\n ", ""))  # generated C++ takes no line breaks

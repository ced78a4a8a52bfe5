# SPDX-License-Identifier: Apache-2.0
"""TernaryLayer, the base of TernaryLinear and TernaryConv2d: phases, codes, quantized forward."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ternary_ops import reference
from ternary_ops._moved import renamed
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedShape, need
from ternary_ops.layout.codes import FINE_PARTS
from ternary_ops.nn import fake_quant
from ternary_ops.nn._state import LayerState
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.ternarize import (
    INT8,
    LearnedScales,
    StraightThrough,
    Ternarizer,
    get_ternarizer,
    lsq_scale,
    mean_ttq_scales,
    per_filter,
    ttq_scale_per_filter,
)

if TYPE_CHECKING:
    from ternary_ops.nn.engine_cost import EngineCost
    from ternary_ops.nn.pruning_progress import Progress

# float32 holds every integer up to here, so a sum that cannot pass it is exact in any order.
_EXACT = 2**24


class TernaryLayer(LayerState, ABC):
    """A layer whose forward computes with integer weights and trains latent float ones.

    weight        latent, torch layout [O, I, ...]
    bias          [O] or None
    ttq_scales    float32 [2] with a ternarizer whose scales are learned ("ttq"), else None: W_p
                  and W_n; while the layer trains, code +1 stands for W_p and -1 for -W_n
    input_range   float32 [2], lo and hi of the quantized input; NaN: not set, it stays float.
                  Learned, through `input_shift`, where activations are "uint8"
    mask          bool, weight's shape; False where pruned
    output_range  float32 [2]: range of what the layer and its fused epilogue produce, where no
                  other layer owns it; NaN: not set
    codes         int8, weight's shape; fixed once frozen
    calls         how often calibrate saw the layer run, None before; not part of the state
    pruning       progress of its Pruner, None without one; not part of the state either
    cost          what its empty units save in the engine, measured by plan; nor this
    by_function   code of the network's own hands its weight to a function, which calls the layer
                  (`nn.function_calls`); not part of the state
    held          while many calls share one weight, that (`nn.held_weights`)
    dense_gradient  whether pruned weights get a gradient in phase "float", and with the estimator
                  "masked", too; a Pruner that lets them grow sets it; not part of the state

    Phases: "float" real masked weights; "ternary" integer weights with a straight-through gradient;
    "frozen" fixed codes, whose scale goes on learning through the latent weight.

    With activations "uint8" the forward is float32 whatever the input's dtype, and equals the
    native kernels bit for bit once the range is set and the phase is not "float"; with "uint11"
    too, while it does not train. Not so with TTQ scales: packed and compiled, such a layer has one
    scale per filter, fitted to them. Under autocast, training on real inputs multiplies in
    autocast's dtype, as the torch twin does, until the phase is "frozen".

    Phase, mask, codes and ranges are derived from buffers from which averages of networks can be
    read too: see LayerState.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    ttq_scales: nn.Parameter | None
    calls: int | None = None
    pruning: Progress | None = None
    cost: EngineCost | None = None
    by_function: bool = False
    held: list[tuple[Tensor, Tensor | None]] | None = None
    dense_gradient: bool = False

    def _adopt(self, weight: Tensor, bias: Tensor | None, config: TernaryConfig) -> None:
        """Take over a float layer's parameters: the same objects, so that optimizers keep them."""
        if config.weights == "float":
            raise BadConfig(
                need(
                    f'config.weights "ternary" or "int8" for {type(self).__name__}',
                    "'float'",
                    "Keep the torch.nn layer instead.",
                )
            )
        if config.activations == "uint11" and getattr(self, "groups", 0) != 1:
            raise BadConfig(
                need(
                    'a convolution with groups=1 for activations "uint11"',
                    type(self).__name__,
                    'Give this layer activations="uint8" by a rule.',
                )
            )
        self.config = config
        self.register_parameter("weight", cast(nn.Parameter, weight))
        self.register_parameter("bias", cast("nn.Parameter | None", bias))
        self._new_state(weight, config.activations == "uint8")
        self.register_parameter("ttq_scales", None)
        if self.ternarizer.learned:
            self.ttq_scales = nn.Parameter(torch.ones(2, device=weight.device))
            if not weight.is_meta:
                self.reset_ttq_scales()

    @torch.no_grad()
    def reset_ttq_scales(self) -> None:
        """Set W_p and W_n, if there are any, to the mean |weight| of codes +1 and of codes -1."""
        if self.ttq_scales is not None:
            weight = self.weight.float()
            codes = self.ternarizer.codes(weight, self.kept(), self.config.pattern)
            self.ttq_scales.copy_(mean_ttq_scales(weight, codes))

    @property
    def ternarizer(self) -> Ternarizer:
        """The rules from latent weights to integer ones, while not frozen."""
        ternary = self.config.weights == "ternary"
        return get_ternarizer(self.config.ternarizer) if ternary else INT8

    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Codes int8 of weight's shape and scale float32 [O], in any phase.

        Raises BadWeights, naming the first weight that is not finite, and for frozen codes that an
        average has mixed.
        """
        finite = self.weight.detach().isfinite()
        if not finite.all():
            at = tuple(int(i) for i in (~finite).nonzero()[0])
            raise BadWeights(
                need("finite weights to quantize", f"{self.weight[at]} at {at}", "Train anew.")
            )
        if self.phase == "frozen":
            self._check_codes()
            codes = self._fixed_codes()
            return codes.to(torch.int8), self._frozen_scale(codes).detach()
        codes, scale = self.ternarizer(self.weight, self.kept(), self.config.pattern)
        learned = self.ttq_scales
        return codes, scale if learned is None else ttq_scale_per_filter(codes, learned.detach())

    def ternary(self) -> tuple[Tensor, Tensor]:
        """Codes in {-1, 0, 1} int8 and scale float32 [O]; BadConfig for an int8 layer."""
        self._needs("ternary")
        return self.integer_weight()

    def int8(self) -> tuple[Tensor, Tensor]:
        """Codes -127..127 int8 and scale float32 [O]; BadConfig for a ternary layer."""
        self._needs("int8")
        return self.integer_weight()

    @torch.no_grad()
    def dequantized_weight(self) -> Tensor:
        """scale * codes, of weight's shape and dtype."""
        codes, scale = self.integer_weight()
        return (codes * per_filter(scale, codes)).to(self.weight.dtype)

    image = renamed("dequantized_weight")
    poles = renamed("ttq_scales")
    reset_poles = renamed("reset_ttq_scales")
    settle = renamed("fold_scales")

    def input_params(self) -> tuple[np.float32, int] | None:
        """Scale and zero point of the quantized input; None while the range is unset or unused."""
        lo, hi = self._bounds().tolist()
        if not self.config.integer_input or lo != lo or hi != hi:
            return None
        two_term = self.config.activations == "uint11"
        return (reference.fine_params if two_term else reference.affine_params)(lo, hi)

    def _float_weight(self) -> nn.Parameter:
        """The effective weight as a float parameter, of the latent weight's dtype."""
        value = (
            self.weight.detach() * self.kept()
            if self.phase == "float"
            else self.dequantized_weight()
        )
        return nn.Parameter(value)

    def _float_bias(self) -> nn.Parameter | None:
        return None if self.bias is None else nn.Parameter(self.bias.detach().clone())

    def _forward(self, x: Tensor) -> Tensor:
        """Fake-quantized forward: quantize the input, sum integer products, scale, add the bias.

        Sums run in a dtype in which integers stay exact; "uint11" inputs are two terms, a code and
        a residual in eighths of a step.
        """
        self._check_input(x)
        phase = self._current_phase()
        integer_input = self.config.integer_input
        two_term, residual = self.config.activations == "uint11", None
        work = torch.float64 if x.dtype == torch.float64 and not integer_input else torch.float32
        result = result_dtype(x)
        training = result if _autocasts(x.device.type) else work
        with _full_precision(x.device.type):
            weight, scale = self._weight_now()
            x = real = x.to(work)
            if integer_input:
                x, x_scale = fake_quant.quantize(x, self._bounds(), two_term)
                if two_term and x is not real:
                    residual = fake_quant.left_over(real, x_scale)
                    if self.training or scale is None:  # weights unrounded: one product is enough
                        x, residual = x + residual / FINE_PARTS, None
                scale = x_scale if scale is None else scale * x_scale
            exact = self._exact_dtype() if integer_input else work
            if x is real and self.training and phase != "frozen":
                # With float input, scale the weights: fewer multiplies than scaling the output.
                if scale is not None:
                    weight = weight * (scale if scale.ndim == 0 else per_filter(scale, weight))
                    scale = None
                exact = training
            y = self._accumulate(x.to(exact), weight.to(exact))
            if residual is not None:
                residual_weight = (weight.detach() / FINE_PARTS).round()
                y = y + self._accumulate(residual.to(exact), residual_weight.to(exact))
            if scale is not None or self.bias is not None:
                y = y.to(work)
            if scale is not None:
                y = y * self._per_output(scale)
            if self.bias is not None:
                y = y + self._per_output(self.bias.to(work))
        return y.to(result)

    def _weight_now(self) -> tuple[Tensor, Tensor | None]:
        """`_training_weight`, or the one that is held."""
        if self.held is None:
            return self._training_weight()
        if not self.held:
            self.held.append(self._training_weight())
        return self.held[0]

    def _training_weight(self) -> tuple[Tensor, Tensor | None]:
        """The weight to accumulate with, and the scale of the sums (None for real weights)."""
        if self._phase == "float":
            return self._real_weight(), None
        if self.ttq_scales is not None:
            return self._with_ttq_scales(self.ttq_scales), None
        if self._phase == "frozen":
            codes = self._fixed_codes()
            return codes, self._frozen_scale(codes)
        rules = self.ternarizer
        mask = self.kept()
        codes, scale = rules(self.weight, mask, self.config.pattern)
        ste = "identity" if rules.ste == "masked" and self.dense_gradient else rules.ste
        made: Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
            self.weight, mask, codes, scale, ste
        )
        return made, scale

    def _real_weight(self) -> Tensor:
        """The masked weight of phase "float", differentiable."""
        kept = self.kept()
        real = self.weight * kept
        if self.dense_gradient:  # adds zeros, whose gradient reaches the pruned weights
            real = real + (self.weight - self.weight.detach()) * ~kept
        # DistributedDataParallel waits for a gradient of every parameter.
        return real if self.ttq_scales is None else real + 0.0 * self.ttq_scales.sum()

    def _with_ttq_scales(self, scales: Tensor) -> Tensor:
        if self._phase == "frozen":
            codes = self._fixed_codes()
        else:
            codes = self.ternarizer(self.weight, self.kept(), self.config.pattern)[0]
        made: Tensor = LearnedScales.apply(  # type: ignore[no-untyped-call]
            self.weight, codes, scales
        )
        return made

    def fold_scales(self) -> float:
        """Replace W_p and W_n by one scale per filter, in place; the phase becomes "frozen".

        Returns |W' - W| / |W| of the weights that the layer computes with; 0.0 without TTQ scales,
        and nothing changes.
        """
        if self.ttq_scales is None:
            return 0.0
        with torch.no_grad():
            codes, scale = self.integer_weight()
            before = LearnedScales.apply(  # type: ignore[no-untyped-call]
                self.weight, codes, self.ttq_scales
            )
            after = codes * per_filter(scale, codes)
            self.weight.copy_(after)
            self.register_parameter("ttq_scales", None)
            self.config = replace(self.config, ternarizer="ptq")
            self._write("frozen", self.kept(), codes)
            return float((after - before).norm() / before.norm().clamp_min(1e-30))

    def _frozen_scale(self, codes: Tensor) -> Tensor:
        if self.ttq_scales is not None:
            return ttq_scale_per_filter(codes, self.ttq_scales)
        rule = self.ternarizer.scale if self.config.weights == "ternary" else lsq_scale
        return rule(self.weight.float(), self.kept(), codes)

    def _exact_dtype(self) -> torch.dtype:
        """The float type in which the accumulator cannot round."""
        largest = 1 if self.config.weights == "ternary" else 127
        terms = self.weight[0].numel() if len(self.weight) else 0
        bound = fake_quant.LEVELS * largest * terms
        if self.config.activations == "uint11":
            bound += bound // FINE_PARTS + terms
        return torch.float32 if bound <= _EXACT else torch.float64

    @abstractmethod
    def _accumulate(self, x: Tensor, weight: Tensor) -> Tensor:
        """The sums alone, without scale and bias."""

    @abstractmethod
    def _per_output(self, values: Tensor) -> Tensor:
        """[O] shaped to broadcast over the output."""

    @abstractmethod
    def _check_input(self, x: Tensor) -> None:
        """Raise UnsupportedShape unless x fits the layer."""

    def _check_dtype(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise UnsupportedShape(
                need(f"a float input of {type(self).__name__}", x.dtype, "Convert it first.")
            )

    def _needs(self, weights: str) -> None:
        if self.config.weights != weights:
            raise BadConfig(
                need(
                    f"a layer with {weights} weights",
                    self.config.weights,
                    "integer_weight() serves both.",
                )
            )

    def extra_repr(self) -> str:
        """The torch twin's line, then what is quantized and how far training is."""
        config = self.config
        rule = f", pattern={config.pattern}, ternarizer={config.ternarizer}"
        return (
            f"weights={config.weights}{rule if config.weights == 'ternary' else ''}, "
            f"activations={config.activations}, phase={self.phase}"
        )


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """No autocast inside: integers must not be rounded to bfloat16."""
    if _autocasts(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def result_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the torch twin's output: autocast's, which leaves float64 alone, else x's."""
    device = x.device.type
    if _autocasts(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _autocasts(device: str) -> bool:
    # Asking a device that knows no autocast, such as meta, is an error.
    return _knows_autocast(device) and torch.is_autocast_enabled(device)


def _knows_autocast(device: str) -> bool:
    return bool(torch.amp.is_autocast_available(device))


# torch.compile of PyTorch 2.10 cannot follow the question. The mark is all that
# torch.compiler.assume_constant_result makes, which would load the compiler here: a second or two.
_knows_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]

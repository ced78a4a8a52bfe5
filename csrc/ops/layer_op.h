// SPDX-License-Identifier: Apache-2.0
// Base of conv2d and linear: weights from attributes, and runs of a ConvPlan.
#pragma once

#include <memory>

#include "ops/layer_weights.h"
#include "program/op_kernel.h"

namespace tops {

// Attributes of weights: kind ('ternary', 'int8', 'float'), shape [O, R, S, I], weights (packed
// codes, int8 or float32), scale [O], bias and slope ([O] or None), sparse (whether to skip empty
// quads; None: by their share). The pointers last for the constructor's call.
ConvWeights weights_of(const Attributes& at, int64_t groups);

// Inputs: x, then a gate if the layer has one, then a residual if there is one more.
class LayerOp : public OpKernel {
 public:
  std::unique_ptr<Prepared> prepare(const PlannedNode& node, Rows rows) const override;
  int64_t macs(const Shape& out) const override;
  double density() const override { return layer_->density; }

 protected:
  // Layers multiply like with like.
  static void need_like_kinds(const Attributes& at, const ValueType& x, Weights kind);
  // Every input but the first has a channel an output.
  void need_operands(const Attributes& at, const Types& in) const;
  void run_conv(const NodeRun& node) const;
  // Input that is added to the output; 0: none.
  size_t residual(size_t inputs) const { return inputs > gate() + 1 ? inputs - 1 : 0; }
  // Input that the output's sigmoid is multiplied with; 0: none.
  size_t gate() const { return gated_ ? 1 : 0; }

  std::unique_ptr<const LayerWeights> layer_;
  Requantize requantize_{};
  Window window_;
  bool gated_ = false;
};

}  // namespace tops

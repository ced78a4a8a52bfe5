// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "engine/conv.h"
#include "engine/packed.h"

namespace tops {

// The weights of a conv or linear node as a program gives them; the pointers last for a call.
struct ConvWeights {
  Weights kind;
  const void* data;
  WeightShape shape;
  const float* scale;
  const float* bias;  // or null
  int sparse;         // -1: by density
};

// The same as the kernels read them.
class LayerWeights {
 public:
  // linear: few input rows read the weights as they are, and the packed form is made when more
  // come. window: of a convolution of u8, which may pack filter rows; else null. Throws
  // kBadWeights, kUnsupportedShape.
  LayerWeights(const ConvWeights& w, bool linear, const Window* window);
  const PackedView& view() const;
  const uint8_t* plain() const { return plain_.size() ? plain_.data() : nullptr; }

  WeightShape shape;
  Weights kind;
  double density;
  int64_t row_filter = 0;  // as ConvPlan's
  std::vector<float> scale, bias;
  std::vector<int32_t> sums;  // of the weights of each output

 private:
  void pack(const void* data, const WeightShape& shape) const;

  int sparse_;
  Buffer plain_;
  mutable std::once_flag once_;
  mutable Buffer packed_;
  mutable PackedView view_;
};

}  // namespace tops

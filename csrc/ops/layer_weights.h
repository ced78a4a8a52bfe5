// SPDX-License-Identifier: Apache-2.0
// Weights of a conv or linear node, in the forms that its kernels read, each made when it is
// needed.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "tensor/conv_input.h"
#include "weights/packed.h"
#include "weights/packed_rows.h"

namespace tops {

// As a program gives them; the pointers last for a call.
struct ConvWeights {
  Weights kind;
  const void* data;
  WeightShape shape;
  const float* scale;
  const float *bias, *slope;  // or null
  int sparse;                 // -1: by density
};

class LayerWeights {
 public:
  enum class Layer { kConv, kLinear, kWeightOnly };

  // kLinear: kept as weight rows (weights/packed_rows.h), and the packed form is made when view()
  // asks for it. kWeightOnly: a linear layer whose integer weights meet floats, on the GEMV path
  // whatever the number of input rows. window: of a convolution of u8, which may pack filter rows;
  // else null. Throws kBadWeights, kUnsupportedShape.
  LayerWeights(const ConvWeights& w, Layer layer, const Window* window);

  // True for the GEMV path at m input rows; otherwise they are m pixels of a convolution.
  bool use_gemv(int64_t m) const;
  const WeightRows& weight_rows() const { return weight_rows_; }
  const PackedView& view() const;

  WeightShape shape;
  Weights kind;
  double density;
  int64_t row_filter = 0;                 // as ConvSpec's
  std::vector<float> scale, bias, slope;  // slope: empty where there is none

 private:
  bool packs_sparse(double density, int64_t r, int64_t s) const;
  void pack(const void* data, const WeightShape& shape, double density) const;

  Layer layer_;
  int sparse_;
  Buffer rows_memory_;
  WeightRows weight_rows_;
  mutable std::once_flag once_;
  mutable Buffer packed_;
  mutable PackedView view_;
};

}  // namespace tops

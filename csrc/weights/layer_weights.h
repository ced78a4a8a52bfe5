// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "ops/conv.h"
#include "weights/packed.h"
#include "weights/packed_rows.h"

namespace tops {

// The weights of a conv or linear node as a program gives them; the pointers last for a call.
struct ConvWeights {
  Weights kind;
  const void* data;
  WeightShape shape;
  const float* scale;
  const float *bias, *slope;  // or null
  int sparse;                 // -1: by density
};

// The same as the kernels read them.
class LayerWeights {
 public:
  enum class Layer { kConv, kLinear, kWeightOnly };

  // kLinear: kept as rows (weights/packed_rows.h), and the packed form is made when view() asks for
  // it. kWeightOnly: a linear layer whose integer rows meet floats, whatever their number. window:
  // of a convolution of u8, which may pack filter rows; else null. Throws kBadWeights,
  // kUnsupportedShape.
  LayerWeights(const ConvWeights& w, Layer layer, const Window* window);
  const PackedView& view() const;
  // Does a linear layer of so many input rows read rows? Else it is a convolution of as many
  // pixels.
  bool by_rows(int64_t m) const;
  const RowsView& rows() const { return rows_; }

  WeightShape shape;
  Weights kind;
  double density;
  int64_t row_filter = 0;                 // as ConvPlan's
  std::vector<float> scale, bias, slope;  // slope: empty where there is none

 private:
  void pack(const void* data, const WeightShape& shape, double occupied) const;

  Layer layer_;
  int sparse_;
  Buffer rows_memory_;
  RowsView rows_;
  mutable std::once_flag once_;
  mutable Buffer packed_;
  mutable PackedView view_;
};

}  // namespace tops

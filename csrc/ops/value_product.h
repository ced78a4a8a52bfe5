// SPDX-License-Identifier: Apache-2.0
// A product of two values in floats: numbers of the second one become the weights of a dense
// convolution over the pixels of the first, whose kernels do the rest.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace tops {

// Where weight [k][j] of a product lies: along * k + across * j floats from the first one.
struct PanelSource {
  const float* first;
  int64_t along, across;
};

// Weights of `outputs` channels, at most kBlock, as a panel [depth][kBlock]; 0 beyond them.
void pack_panel(const PanelSource& from, int64_t depth, int64_t outputs, float* panel);

// y[j][p] = scale * sum over k < depth of panel[k][j] * x[k][p]; channels of x and y lie x_stride
// and y_stride floats apart. It computes by the kernels of the thread that made it.
class ValueProduct {
 public:
  ValueProduct(int64_t depth, int64_t x_stride, int64_t y_stride, int64_t pixels, float scale);
  ValueProduct(const ValueProduct&) = delete;
  ValueProduct& operator=(const ValueProduct&) = delete;

  // Pixels [begin, end) of `outputs` channels. Whole vectors are read behind `end`.
  void run(const float* x, const float* panel, int64_t outputs, float* y, int64_t begin,
           int64_t end) const;
  // Unscaled, whole vectors written.
  void run_vectors(const float* x, const float* panel, int64_t outputs, float* y,
                   int64_t count) const;

 private:
  ConvArgs of(const float* x, const float* panel, int64_t outputs, float* y) const;

  const KernelTable& kernel_;
  std::vector<int64_t> offsets_;
  std::vector<uint8_t> valid_;
  float scale_[kChannelPad], bias_[kChannelPad] = {};
  int32_t start_[kChannelPad] = {};
  ConvArgs args_{};
};

}  // namespace tops

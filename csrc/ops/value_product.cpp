// SPDX-License-Identifier: Apache-2.0
#include "ops/value_product.h"

#include <algorithm>
#include <limits>

#include "isa/isa.h"
#include "ops/epilogue.h"

namespace tops {

void pack_panel(const PanelSource& from, int64_t depth, int64_t outputs, float* panel) {
  const float* row = from.first;
  for (int64_t k = 0; k < depth; ++k, panel += kBlock, row += from.along) {
    for (int64_t j = 0; j < outputs; ++j) panel[j] = row[j * from.across];
    std::fill(panel + outputs, panel + kBlock, 0.0f);
  }
}

ValueProduct::ValueProduct(int64_t depth, int64_t x_stride, int64_t y_stride, int64_t pixels,
                           float scale)
    : kernel_(kernels()),
      offsets_(static_cast<size_t>(depth)),
      valid_(static_cast<size_t>(pixels / 8 + 9), 0xff) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (int64_t k = 0; k < depth; ++k) offsets_[static_cast<size_t>(k)] = k * x_stride * 4;
  std::fill(scale_, scale_ + kChannelPad, scale);
  args_.pixels = pixels;
  args_.weights = Weights::kFloat;
  args_.dense.offsets = offsets_.data();
  args_.dense.k = depth;
  args_.dense.group_blocks = 1;
  args_.epilogue = make_epilogue({-kInf, kInf, 0.0f, 0}, {});
  args_.epilogue.start = start_;
  args_.epilogue.scale = scale_;
  args_.epilogue.bias = bias_;
  args_.y.channel_stride = y_stride * 4;
  args_.y.is_float = true;
  args_.y.valid = valid_.data();
}

ConvArgs ValueProduct::of(const float* x, const float* panel, int64_t outputs, float* y) const {
  ConvArgs args = args_;
  args.x = reinterpret_cast<const uint8_t*>(x);
  args.outputs = outputs;
  args.dense.panels = reinterpret_cast<const uint8_t*>(panel);
  args.y.data = reinterpret_cast<uint8_t*>(y);
  return args;
}

void ValueProduct::run(const float* x, const float* panel, int64_t outputs, float* y, int64_t begin,
                       int64_t end) const {
  kernel_.conv_dense(of(x, panel, outputs, y), 0, 1, begin, end, nullptr);
}

void ValueProduct::run_vectors(const float* x, const float* panel, int64_t outputs, float* y,
                               int64_t count) const {
  ConvArgs args = of(x, panel, outputs, y);
  args.dense.sums_only = true;
  kernel_.conv_dense(args, 0, 1, 0, count, nullptr);
}

}  // namespace tops

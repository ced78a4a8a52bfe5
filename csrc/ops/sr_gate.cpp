// SPDX-License-Identifier: Apache-2.0
#include "base/threads.h"
#include "isa/isa.h"
#include "ops/eager.h"
#include "tensor/interpolation.h"

namespace tops {
namespace {

// Rows of a small map, interpolated to the width of a crop; the last two are kept.
class BilinearRows {
 public:
  BilinearRows(const float* map, int64_t width, const BilinearColumns& columns, int64_t crop)
      : map_(map), width_(width), columns_(columns), crop_(crop), memory_(2 * crop * 4) {}
  const float* operator()(int64_t line) {
    float* const row = reinterpret_cast<float*>(memory_.data()) + line % 2 * crop_;
    if (held_[line % 2] != line)
      kernels().bilinear_floats(columns_.bilinear(), map_ + line * width_, crop_, row);
    held_[line % 2] = line;
    return row;
  }

 private:
  const float* map_;
  int64_t width_;
  const BilinearColumns& columns_;
  int64_t crop_;
  Buffer memory_;
  int64_t held_[2] = {-1, -1};
};

}  // namespace

void sr_gate(const GateCall& g) {
  const int64_t pixels = g.h * g.w, vectors = g.planes * pixels / kernels().lanes;
  const KernelTable& kernel = kernels();
  const auto row_at = [&](int64_t offset, const float* low) {
    const float* const residual = g.residual == nullptr ? nullptr : g.residual + offset;
    return GateRow{g.x + offset, g.gate + offset, low, residual, g.offset, g.y + offset};
  };
  if (g.low == nullptr) {
    parallel_for(g.planes, 16 * vectors, [&](int64_t plane, int) {
      kernel.gate_row(row_at(plane * pixels, nullptr), pixels);
    });
    return;
  }
  const float tall = sampling_ratio(g.low_h, g.image_h, false, 0.0f);
  const float wide = sampling_ratio(g.low_w, g.image_w, false, 0.0f);
  const BilinearColumns columns(g.low_w, g.left, g.w, wide, false);
  parallel_for(g.planes, 20 * vectors, [&](int64_t plane, int) {
    BilinearRows rows(g.low + plane * g.low_h * g.low_w, g.low_w, columns, g.w);
    Buffer blended(g.w * 4);
    float* const low = reinterpret_cast<float*>(blended.data());
    for (int64_t y = 0; y < g.h; ++y) {
      const Sample v = sample(g.top + y, g.low_h, tall, false);
      const float *const above = rows(v.first), *const below = rows(v.second);
      kernel.blend_rows(above, below, v.first_weight, v.second_weight, g.w, low);
      kernel.gate_row(row_at(plane * pixels + y * g.w, low), g.w);
    }
  });
}

}  // namespace tops

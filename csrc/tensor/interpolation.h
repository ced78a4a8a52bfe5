// SPDX-License-Identifier: Apache-2.0
// Nearest, bilinear and bicubic interpolation: where a resized image reads its source, as PyTorch
// computes it in float32.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace tops {

// Input pixels per output pixel along one axis. zoom: 0 where the sizes decide.
float sampling_ratio(int64_t size, int64_t out, bool align, float zoom);

// exact: of the middle of an output pixel, in place of its beginning.
int64_t nearest(int64_t i, int64_t size, float ratio, bool exact = false);

struct Sample {
  int64_t first, second;
  float first_weight, second_weight;
};

// Source samples that output i of a bilinear resize blends.
Sample sample(int64_t i, int64_t size, float ratio, bool align);

struct CubicSample {
  int64_t at[4];
  float weight[4];
};

// Source samples that output i of a bicubic resize blends; those outside repeat the border.
CubicSample cubic_sample(int64_t i, int64_t size, float ratio, bool align);

// Source samples of outputs begin ... begin + count - 1 of a resized row.
class BilinearColumns {
 public:
  BilinearColumns(int64_t size, int64_t begin, int64_t count, float ratio, bool align);
  Bilinear bilinear() const {
    return {first_.data(), second_.data(), first_weight_.data(), second_weight_.data()};
  }

 private:
  std::vector<int32_t> first_, second_;
  std::vector<float> first_weight_, second_weight_;
};

}  // namespace tops

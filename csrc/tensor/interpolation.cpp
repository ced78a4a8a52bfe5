// SPDX-License-Identifier: Apache-2.0
#include "tensor/interpolation.h"

#include <algorithm>
#include <cmath>

namespace tops {

float sampling_ratio(int64_t size, int64_t out, bool align, float zoom) {
  if (align) return out > 1 ? static_cast<float>(size - 1) / static_cast<float>(out - 1) : 0.0f;
  if (zoom > 0.0f) return static_cast<float>(1.0 / static_cast<double>(zoom));
  return static_cast<float>(size) / static_cast<float>(out);
}

int64_t nearest(int64_t i, int64_t size, float ratio, bool exact) {
  const float at = (static_cast<float>(i) + (exact ? 0.5f : 0.0f)) * ratio;
  return std::min(static_cast<int64_t>(std::floor(at)), size - 1);
}

Sample sample(int64_t i, int64_t size, float ratio, bool align) {
  float at = static_cast<float>(i) * ratio;
  if (!align) at = std::max((static_cast<float>(i) + 0.5f) * ratio - 0.5f, 0.0f);
  const int64_t first = std::min(static_cast<int64_t>(at), size - 1);
  const float share = std::min(std::max(at - static_cast<float>(first), 0.0f), 1.0f);
  return {first, std::min(first + 1, size - 1), 1.0f - share, share};
}

CubicSample cubic_sample(int64_t i, int64_t size, float ratio, bool align) {
  constexpr float kA = -0.75f;  // as PyTorch has it
  const auto near = [](float x) { return ((kA + 2.0f) * x - (kA + 3.0f)) * x * x + 1.0f; };
  const auto far = [](float x) { return ((kA * x - 5.0f * kA) * x + 8.0f * kA) * x - 4.0f * kA; };
  const float at =
      align ? static_cast<float>(i) * ratio : (static_cast<float>(i) + 0.5f) * ratio - 0.5f;
  const float whole = std::floor(at), t = at - whole, rest = 1.0f - t;
  CubicSample made{{}, {far(t + 1.0f), near(t), near(rest), far(rest + 1.0f)}};
  for (int64_t k = 0; k < 4; ++k)
    made.at[k] = std::min(std::max<int64_t>(static_cast<int64_t>(whole) - 1 + k, 0), size - 1);
  return made;
}

BilinearColumns::BilinearColumns(int64_t size, int64_t begin, int64_t count, float ratio,
                                 bool align) {
  for (int64_t i = begin; i < begin + count; ++i) {
    const Sample s = sample(i, size, ratio, align);
    first_.push_back(static_cast<int32_t>(s.first));
    second_.push_back(static_cast<int32_t>(s.second));
    first_weight_.push_back(s.first_weight);
    second_weight_.push_back(s.second_weight);
  }
}

}  // namespace tops

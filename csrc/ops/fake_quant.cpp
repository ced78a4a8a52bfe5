// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <vector>

#include "base/threads.h"
#include "isa/isa.h"
#include "ops/eager.h"

namespace tops {
namespace {

// Elements of one partial sum: fixed, so that results do not depend on the number of threads.
constexpr int64_t kPart = 1 << 15;

FakeRange range_of(float scale, int32_t zero_point) {
  return {scale, 1.0f / scale, static_cast<float>(-zero_point),
          static_cast<float>(255 - zero_point)};
}

// body(begin, end) of every part, a run of neighbors each thread.
void in_parts(int64_t n, int threads, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t parts = divide_up(n, kPart);
  const int64_t runs = std::max<int64_t>(1, std::min<int64_t>(threads, parts));
  parallel_for(runs, n, [&](int64_t run, int) {
    for (int64_t part = parts * run / runs; part < parts * (run + 1) / runs; ++part)
      body(part * kPart, std::min(n, (part + 1) * kPart));
  });
}

}  // namespace

void fake_quantize(const float* x, int64_t n, float scale, int32_t zero_point, int threads,
                   float* y) {
  const FakeRange range = range_of(scale, zero_point);
  in_parts(n, threads, [&](int64_t begin, int64_t end) {
    kernels().fake_quantize(x + begin, end - begin, range, y + begin);
  });
}

FakeSums fake_quantize_grad(const float* x, const float* grad, int64_t n, float scale,
                            int32_t zero_point, int threads, float* dx) {
  const FakeRange range = range_of(scale, zero_point);
  std::vector<FakeSums> sums(static_cast<size_t>(divide_up(n, kPart)));
  in_parts(n, threads, [&](int64_t begin, int64_t end) {
    kernels().fake_quantize_grad(x + begin, grad + begin, end - begin, range, dx + begin,
                                 sums[static_cast<size_t>(begin / kPart)]);
  });
  FakeSums total = {};
  for (const FakeSums& s : sums) {
    total.rounding += s.rounding;
    total.below += s.below;
    total.above += s.above;
  }
  return total;
}

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "ops/precision.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/threads.h"
#include "tensor/tensor.h"

namespace tops {
namespace {

using Args = PrecisionArgs<float>;

// [rows][B] to and from [rows][kFilterLanes]; n rollouts, and the first of them where there are no
// more.
std::vector<float> padded(const float* from, int64_t rows, int64_t rollouts, int64_t first) {
  std::vector<float> to(static_cast<size_t>(rows * kFilterLanes));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t l = 0; l < kFilterLanes; ++l)
      to[static_cast<size_t>(i * kFilterLanes + l)] =
          from[i * rollouts + (first + l < rollouts ? first + l : first)];
  return to;
}

void unpad(const std::vector<float>& from, int64_t rows, int64_t rollouts, int64_t first,
           float* to) {
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(to + i * rollouts + first, from.data() + i * kFilterLanes,
                static_cast<size_t>(rollouts - first) * 4);
}

// The rollouts that are less than a block, in a block of their own.
void run_rest(const Args& a, int64_t first, PrecisionKernel<float> kernel, float* scratch) {
  const int64_t d = a.states, triangle = d * (d + 1) / 2;
  Args own = a;
  own.rollouts = kFilterLanes;
  const auto y = padded(a.y, a.steps * a.sensors, a.rollouts, first);
  const auto drive = a.drive ? padded(a.drive, a.steps * d, a.rollouts, first) : y;
  auto m = padded(a.m, d, a.rollouts, first), p = padded(a.p, triangle, a.rollouts, first),
       beta = padded(a.beta, a.sensors, a.rollouts, first);
  std::vector<float> means(a.means ? static_cast<size_t>(a.steps * d * kFilterLanes) : 0),
      residuals(a.residuals ? y.size() : 0);
  own.y = y.data();
  own.drive = a.drive ? drive.data() : nullptr;
  own.m = m.data(), own.p = p.data(), own.beta = beta.data();
  own.means = a.means ? means.data() : nullptr;
  own.residuals = a.residuals ? residuals.data() : nullptr;
  kernel(own, 0, kFilterLanes, scratch);
  unpad(m, d, a.rollouts, first, a.m);
  unpad(p, triangle, a.rollouts, first, a.p);
  unpad(beta, a.sensors, a.rollouts, first, a.beta);
  if (a.means) unpad(means, a.steps * d, a.rollouts, first, a.means);
  if (a.residuals) unpad(residuals, a.steps * a.sensors, a.rollouts, first, a.residuals);
}

}  // namespace

void precision_filter(const Args& a) {
  const PrecisionKernel<float> kernel = precision_kernels().filter;
  const int64_t tile = filter_tile(a.states, a.sensors);
  const int64_t whole = a.rollouts / kFilterLanes * kFilterLanes;
  const int64_t tiles = divide_up(whole, tile), work = a.rollouts * a.steps * a.sensors;
  parallel_for(tiles + (whole < a.rollouts), work, [&](int64_t i, int) {
    std::vector<float> scratch(static_cast<size_t>(filter_scratch(a.states, a.sensors)));
    if (i < tiles)
      kernel(a, i * tile, std::min(whole, (i + 1) * tile), scratch.data());
    else
      run_rest(a, whole, kernel, scratch.data());
  });
}

void precision_update(const UpdateArgs& a) {
  constexpr int64_t kRun = 64 * kFilterLanes;
  const auto update = precision_kernels().update;
  std::fill_n(a.flags, divide_up(a.sensors, 32) * a.rollouts, 0);
  parallel_for(divide_up(a.rollouts, kRun), a.rollouts * a.sensors, [&](int64_t i, int) {
    std::vector<float> scratch(static_cast<size_t>(3 * a.sensors));
    update(a, i * kRun, std::min(a.rollouts, (i + 1) * kRun), scratch.data());
  });
}

void precision_step(const PrecisionArgs<double>& a) {
  thread_local std::vector<double> scratch;
  scratch.resize(static_cast<size_t>(filter_scratch(a.states, a.sensors)));
  precise_filter()(a, 0, a.rollouts, scratch.data());
}

void sensor_noise(uint64_t seed, int64_t rollout, int64_t step, int64_t sensors, int64_t n,
                  float* out) {
  const NoiseKernel kernel = precision_kernels().noise;
  parallel_for(divide_up(sensors, 4), sensors * n * 16, [&](int64_t group, int) {
    const int64_t first = group * 4;
    kernel(seed, rollout, step, group, std::min<int64_t>(4, sensors - first), n, out + first * n,
           n);
  });
}

}  // namespace tops

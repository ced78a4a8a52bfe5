// SPDX-License-Identifier: Apache-2.0
// The precision filter for each instruction set.
#include "isa/precision.h"

#include <algorithm>
#include <cstring>

#include "isa/isa.h"
#include "isa/target.h"

// Vectors wider than the baseline's registers never leave inlined code.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace tops {
namespace baseline_impl {
using Lanes = float __attribute__((vector_size(4 * kFilterLanes)));
// clang-format off: each region has kernels of its own
#include "kernels/precision_filter.inl"
#include "kernels/normal_noise.inl"
// clang-format on
static const PrecisionKernels kKernels = {filter_rollouts<Lanes, float>, update_rollouts<Lanes>,
                                          normal_noise};
}  // namespace baseline_impl

#if defined(__x86_64__) && !defined(TOPS_EMULATED)
TOPS_TARGET_BEGIN("avx2,fma,f16c")
namespace avx2_filter {
using Lanes = float __attribute__((vector_size(4 * kFilterLanes)));
// clang-format off
#include "kernels/precision_filter.inl"
#include "kernels/normal_noise.inl"
// clang-format on
static const PrecisionKernels kKernels = {filter_rollouts<Lanes, float>, update_rollouts<Lanes>,
                                          normal_noise};
}  // namespace avx2_filter
TOPS_TARGET_END

TOPS_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
namespace avx512_filter {
using Lanes = float __attribute__((vector_size(4 * kFilterLanes)));
// clang-format off
#include "kernels/precision_filter.inl"
#include "kernels/normal_noise.inl"
// clang-format on
static const PrecisionKernels kKernels = {filter_rollouts<Lanes, float>, update_rollouts<Lanes>,
                                          normal_noise};
}  // namespace avx512_filter
TOPS_TARGET_END
#endif

namespace {

constexpr int64_t kTileBytes = 24 * 1024;
constexpr int64_t kMostBlocks = 32;

int64_t rows_of(int64_t states, int64_t sensors) {
  return states + states * (states + 1) / 2 + sensors;
}

}  // namespace

int64_t filter_tile(int64_t states, int64_t sensors) {
  const int64_t block = rows_of(states, sensors) * kFilterLanes * 4;
  return std::clamp<int64_t>(kTileBytes / block, 1, kMostBlocks) * kFilterLanes;
}

int64_t filter_scratch(int64_t states, int64_t sensors) {
  return rows_of(states, sensors) * filter_tile(states, sensors) + (3 + kFilterLanes) * sensors;
}

const PrecisionKernels& precision_kernels() {
#if defined(__x86_64__) && !defined(TOPS_EMULATED)
  const char* const name = kernels().name;
  if (!std::strcmp(name, "avx512vnni")) return avx512_filter::kKernels;
  if (std::strcmp(name, "scalar")) return avx2_filter::kKernels;
#endif
  return baseline_impl::kKernels;
}

PrecisionKernel<double> precise_filter() { return baseline_impl::filter_rollouts<double, double>; }

}  // namespace tops

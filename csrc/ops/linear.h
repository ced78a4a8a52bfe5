// SPDX-License-Identifier: Apache-2.0
// The GEMV path of linear layers: a few input rows at a time meet all weight rows
// (weights/packed_rows.h), and when it is the one to use.
#pragma once

#include <cstdint>
#include <functional>

#include "weights/packed_rows.h"

namespace tops {

// Input rows of a linear layer, `stride` elements apart: u8, or float32 to be quantized.
struct GemvInput {
  const void* data;
  bool is_float;
  int64_t m, stride;
  float scale;
  int32_t zero_point;
};

// y[i * n + o] = (sum over k of w[o][k] * (x[i][k] - zero_point)) * (scale[o] * x_scale) + bias[o];
// bias null: 0. finish(begin, end) is called once for every range of outputs, on the thread that
// made it, when y holds it for all input rows.
void gemv(const WeightRows& w, const GemvInput& x, const float* scale, const float* bias, float* y,
          const std::function<void(int64_t, int64_t)>& finish);

// GEMV with float input (weight-only), contiguous float32 or bfloat16:
// y[i * n + o] = (sum over k of w[o][k] * x[i][k]) * scale[o] + bias[o], in float32. Weights of
// base three are not read.
void gemv_float(const WeightRows& w, const void* x, bool bfloat16, int64_t m, const float* scale,
                const float* bias, float* y);

// Two-bit codes or base three for a layer of this size. Measured once a process for each kernel
// set, thread count and power of two of bytes: base three reads a fifth less but decodes more
// slowly, so it pays where reading is slow. Layers that stay in a core's own caches are two-bit
// unmeasured.
RowCodes faster_codes(int64_t n, int64_t k);

// pack_weight_rows with the codes that are faster here.
Buffer pack_faster_weight_rows(Weights weights, const void* plain, int64_t n, int64_t k,
                               int64_t tail_bytes = 0);

// True if the GEMV path is faster for m input rows than skipping empty quads; density is the
// fraction of nonzero quads.
bool gemv_beats_sparse(Weights weights, int64_t m, double density);

// True if skipping empty quads is faster for some number of input rows.
bool sparse_pays(Weights weights, double density);

}  // namespace tops

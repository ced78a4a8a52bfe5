// SPDX-License-Identifier: Apache-2.0
// One layer at a time on plain NCHW tensors: what the torch operators call.
#pragma once

#include <cstdint>

#include "engine/conv.h"

namespace tops {

struct TensorRef {
  void* data;
  bool is_float;  // else u8
  float scale;    // output only; 0 where float
  int32_t zero_point;
};

// x [N, C, H, W], packed weights, scale and bias (or null) [O], y [N, O, Ho, Wo].
void conv2d(const TensorRef& x, int64_t n, int64_t c, int64_t h, int64_t w,
            const PackedView& packed, const float* scale, const float* bias, const Window& window,
            const TensorRef& y);

// x [M, K], y [M, N]. plain: codes [N, ceil(K/4)], int8 [N, 4 ceil(K/4)] or float [N, K]. packed
// may be null: then large M packs here.
void linear(const TensorRef& x, int64_t m, int64_t k, Weights weights, const void* plain, int64_t n,
            const PackedView* packed, const float* scale, const float* bias, const TensorRef& y);

}  // namespace tops

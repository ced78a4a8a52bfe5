// SPDX-License-Identifier: Apache-2.0
// One layer at a time on plain NCHW tensors: what the torch operators call.
#pragma once

#include <cstdint>

#include "ops/conv.h"

namespace tops {

struct TensorRef {
  void* data;
  bool is_float;  // float32, else u8
  float scale;    // of the values of u8; of a float x of linear: that it is quantized with, or 1
  int32_t zero_point;
  bool bfloat16 = false;  // in place of float32: x of linear, weight-only
};

// x [N, C, H, W], packed weights, scale and bias (or null) [O], y [N, O, Ho, Wo].
void conv2d(const TensorRef& x, int64_t n, int64_t c, int64_t h, int64_t w,
            const PackedView& packed, const float* scale, const float* bias, const Window& window,
            const TensorRef& y);

// x [M, K], y [M, N]. x is u8, or float32 that is quantized here; or float32 or bfloat16 with
// weights kFloat.
// packed: of pack_linear. Throws kBadWeights where it is of another layer.
void linear(const TensorRef& x, int64_t m, int64_t k, Weights weights, int64_t n,
            const uint8_t* packed, int64_t packed_bytes, const float* scale, const float* bias,
            const TensorRef& y);

// Weights for linear: weight rows (weights/packed_rows.h), followed by the sparse form where asked
// for; floats in the form of convolutions. plain: codes [N, ceil(K/4)], int8 [N, 4 ceil(K/4)] or
// float [N, K].
Buffer pack_linear(bool sparse, Weights weights, const void* plain, int64_t n, int64_t k);

// x and y [n] float32: y = clamp(rint(x / scale), -zero_point, 255 - zero_point), in parts for at
// most `threads` threads.
void fake_quantize(const float* x, int64_t n, float scale, int32_t zero_point, int threads,
                   float* y);

// The gradient dx [n] of its input from that of its output, [n], both divided by scale; returns
// what the bounds of the range get. The same on any number of threads.
FakeSums fake_quantize_grad(const float* x, const float* grad, int64_t n, float scale,
                            int32_t zero_point, int threads, float* dx);

// y = x * (sigmoid(gate + low) - offset) + residual, all [planes, h, w] but low [planes, low_h,
// low_w]: bilinear over an image of image_h x image_w, of which x shows what begins at (top, left).
// low and residual may be null.
struct GateCall {
  const float *x, *gate, *low, *residual;
  float* y;
  int64_t planes, h, w;
  int64_t low_h, low_w, image_h, image_w, top, left;
  float offset;
};
void sr_gate(const GateCall& g);

}  // namespace tops

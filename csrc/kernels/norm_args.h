// SPDX-License-Identifier: Apache-2.0
// Argument structs of kernels that normalize: softmax, attention on codes, LayerNorm.
#pragma once

#include <cstdint>

namespace tops {

// x[c][p] = exp(v - the largest v of p) / their sum over c, v = x[c][p] * scale + bias[c][p], for
// whole vectors of p.
struct SoftmaxArgs {
  float* x;
  int64_t count, stride;  // rows, and floats from one to the next
  int64_t n;              // numbers of a row; those up to whole vectors are made too
  float scale;
  const float* bias;  // or null
  int64_t bias_stride;
};

// y = (x - mean) / sqrt(variance + eps) * weight[c] + bias[c] over the channels c of each of n
// pixels, as floats or codes; strides in packets, of x and floats from one channel to the next.
struct LayerNormArgs {
  const float* x;
  int64_t x_stride;
  uint8_t* y;
  int64_t y_stride;
  bool float_out;
  float inv;  // 1 / output scale
  int32_t zero_point;
  int64_t channels, n;
  const float *weight, *bias;
  float eps;
};

// Shares of attention as codes that add up to about kShares times the softmax's denominator:
// docs/architecture.md, "Integer semantics".
struct ShareArgs {
  // In: sums [count][stride] of keys and queries. Out: u8 packets of four keys, those of keys 4i ..
  // 4i + 3 in row 4i. Rows up to a multiple of four are there.
  int32_t* scores;
  int64_t count, stride;  // keys, and numbers from one row to the next
  int64_t n;              // queries; those up to whole vectors are made too
  float factor;           // of sums
  const float* bias;      // [count][bias_stride] added behind it, or null
  int64_t bias_stride;
  int32_t* totals;  // [n] of the shares of each query, whole vectors
};
// The largest share; half of one more is carried from key to key and must fit as well.
constexpr float kShares = 254.0f;

// y = (sums + shift * totals) * (scale / totals) of up to four channels, as floats or codes.
struct MixArgs {
  const int32_t* sums;  // [channels][stride]
  int64_t channels, stride, n;
  const int32_t* totals;
  int32_t shift;         // 128 - the zero point of values
  float scale;           // of values
  uint8_t* y;            // the first packet
  int64_t y_stride;      // floats: bytes from one channel to the next
  int64_t packet_bytes;  // from these channels to the next four
  bool float_out;
  float inv;  // 1 / output scale
  int32_t zero_point;
};

}  // namespace tops

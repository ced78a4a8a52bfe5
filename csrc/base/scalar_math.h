// SPDX-License-Identifier: Apache-2.0
// The epilogue for one value, for nodes too small to be worth vectors. The same float32 steps as
// kernels/epilogue.inl.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/table.h"

namespace tops {

inline uint8_t to_code(float y, const Epilogue& e) {
  float v = y * e.inv;
  int32_t q = 0;
  if (v >= 32768.0f)
    q = 32767;
  else if (v > -65536.0f)
    q = static_cast<int32_t>(std::lrintf(v)) + e.zero_point;
  else
    q = -1;  // NaN too
  q = q < 0 ? 0 : q > 255 ? 255 : q;
  return static_cast<uint8_t>(q < e.qlo ? e.qlo : q > e.qhi ? e.qhi : q);
}

inline float activate(float y, const Epilogue& e) {
  y = e.lo > y ? e.lo : y;
  return e.hi < y ? e.hi : y;
}

// acc * scale + bias, then the residual.
inline float affine(float acc, float scale, float bias) {
  float y = acc * scale;
  return y + bias;
}

inline float dequantized(uint8_t q, float scale, int32_t zero_point) {
  return static_cast<float>(static_cast<int32_t>(q) - zero_point) * scale;
}

// n bfloat16 values are the upper halves of as many float32.
inline void widen_bfloat16(const void* from, int64_t n, uint8_t* to) {
  for (int64_t k = 0; k < n; ++k) {
    uint16_t half;
    std::memcpy(&half, static_cast<const uint8_t*>(from) + 2 * k, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(to + 4 * k, &bits, 4);
  }
}

}  // namespace tops

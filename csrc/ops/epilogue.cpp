// SPDX-License-Identifier: Apache-2.0
#include "ops/epilogue.h"

#include <algorithm>
#include <cmath>

namespace tops {
namespace {

// A bound of the output as a code.
uint8_t code_of(float bound, float inv, int32_t zero_point) {
  const float v = bound * inv;
  if (!(v < 1e6f)) return 255;  // no bound: +inf
  if (v < -1e6f) return 0;
  return static_cast<uint8_t>(std::min(255L, std::max(0L, std::lrintf(v) + zero_point)));
}

}  // namespace

Epilogue make_epilogue(const Requantize& q, const Operand& residual, const Operand& gate) {
  Epilogue e{};
  e.lo = q.lo;
  e.hi = q.hi;
  if (q.y_scale != 0.0f) {
    e.inv = 1.0f / q.y_scale;
    e.zero_point = q.y_zero_point;
    e.qlo = code_of(q.lo, e.inv, q.y_zero_point);
    e.qhi = code_of(q.hi, e.inv, q.y_zero_point);
    e.capped = true;
  }
  e.res_scale = residual.scale;
  e.res_zero_point = residual.zero_point;
  e.gate_scale = gate.scale;
  e.gate_zero_point = gate.zero_point;
  return e;
}

}  // namespace tops

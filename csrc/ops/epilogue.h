// SPDX-License-Identifier: Apache-2.0
// Epilogue of a convolution or linear layer, from its accumulator to its output:
// docs/architecture.md, "Integer semantics".
#pragma once

#include <cstdint>

#include "kernels/table.h"

namespace tops {

// Bounds of the output, and the range of its codes; y_scale 0 means float output.
struct Requantize {
  float lo, hi, y_scale;
  int32_t y_zero_point;
};

// Second operand of an epilogue: added to the output, or multiplied with its sigmoid.
struct Operand {
  bool present = false, is_float = false;
  float scale = 1.0f;
  int32_t zero_point = 0;
  int64_t channel_stride = 0;  // of its tensor; 0: as the output's
};

// The epilogue without its per-channel arrays.
Epilogue make_epilogue(const Requantize& q, const Operand& residual, const Operand& gate = {});

}  // namespace tops

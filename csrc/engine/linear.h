// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "engine/conv.h"

namespace tops {

// Up to this many input rows, walking the weight rows once per input row beats vectors whose lanes
// are input rows.
constexpr int64_t kMatvecRows = 4;

// Can matvec_rows take this layer? Ternary rows scale their sums by 64, which bounds K.
bool matvec_fits(Weights weights, int64_t k);

// acc[m][n] for u8 rows x [M, K] (row stride K padded by the caller to a multiple of 4, padding 0)
// and plain weights: codes [N, ceil(K/4)] or int8 [N, 4 ceil(K/4)].
void matvec_rows(Weights weights, const uint8_t* x, int64_t m, int64_t k, const uint8_t* w,
                 int64_t n, int32_t* acc);

}  // namespace tops

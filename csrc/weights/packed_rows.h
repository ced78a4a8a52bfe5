// SPDX-License-Identifier: Apache-2.0
// Weight rows of a linear layer, as the GEMV kernels read them (kernels/linear.inl,
// linear_float.inl). Like the packed form (weights/packed.h) a blob with a header, never stored in
// files.
//
// A row is blocks of kRowBlock bytes. int8: the weights. Ternary: number j of byte b of a block of
// S numbers a byte is weight S * 64 * block + 64 * j + b, plus one. Two bits: S = 4, number j in
// bits 2j and 2j + 1. Base three: S = 5, the byte is ceil(number * 256 / 243), digit 0 the highest.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "tensor/tensor.h"
#include "weights/packed.h"

namespace tops {

int64_t row_bytes_of(RowCodes codes, int64_t k);

// Points into a blob.
struct WeightRows {
  RowCodes codes = RowCodes::kTwoBit;
  int64_t n = 0, k = 0, row_bytes = 0;
  const int32_t* sums = nullptr;  // [n] of the weights of each row
  const uint8_t* data = nullptr;
  const uint8_t* tail = nullptr;  // what follows the rows in the blob
  int64_t tail_bytes = 0;
  Weights weights() const { return codes == RowCodes::kInt8 ? Weights::kInt8 : Weights::kTernary; }
  // Input values that a weight row meets, padding included.
  int64_t width() const;
};

// True if this layer can be stored as weight rows: sums of (w + 1) * x are kept four times as
// large, which bounds K.
bool weight_rows_fit(Weights weights, int64_t k);

// plain: codes [N, ceil(K/4)] or int8 [N, 4 ceil(K/4)]. tail_bytes of the blob are left for the
// caller. Throws kBadWeights on the invalid code, kUnsupportedShape where weight_rows_fit is false.
Buffer pack_weight_rows(RowCodes codes, const void* plain, int64_t n, int64_t k,
                        int64_t tail_bytes);

bool is_weight_rows(const uint8_t* blob, int64_t bytes);

// Throws kBadWeights where the blob is not what pack_weight_rows made.
WeightRows view_weight_rows(const uint8_t* blob, int64_t bytes);

// The plain weights again.
std::vector<uint8_t> unpack_weight_rows(const WeightRows& rows);

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
// Plain weights, as they are given to be packed: output channel, tap, input channel, seen as quads
// (4 consecutive input channels of one tap of one output channel).
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/table.h"

namespace tops {

struct WeightShape {
  int64_t o = 0, r = 0, s = 0, i = 0, groups = 1;  // i: input channels per group
  int64_t channels() const { return i * groups; }
  int64_t quads() const { return (i + 3) / 4; }  // of one tap of one output
};

// Throws kBadWeights: the code at this place is the invalid one, 10.
[[noreturn]] void bad_code(int64_t o, int64_t tap, int64_t c);

// Integer weights: ternary codes [O, R, S, ceil(I/4)] or int8 [O, R, S, 4 ceil(I/4)].
class Quads {
 public:
  Quads(Weights kind, const void* w, const WeightShape& s);

  // Four int8. Throws kBadWeights on the invalid code.
  int32_t operator()(int64_t o, int64_t tap, int64_t quad) const {
    const int64_t at = (o * s_.r * s_.s + tap) * count_ + quad;
    if (kind_ == Weights::kInt8) return int8_at(at);
    const uint8_t codes = w_[at];
    return codes ? expanded(codes, o, tap, quad) : 0;
  }
  int8_t value(int64_t o, int64_t tap, int64_t c) const {
    return static_cast<int8_t>((*this)(o, tap, c / 4) >> (8 * (c % 4)));
  }
  // The nonzero quads of one output whose group begins at input packet first_packet, by packet,
  // then by tap. Throws as operator() does.
  void append_nonzero(int64_t o, int64_t first_packet, std::vector<Entry>* entries) const;

 private:
  int32_t int8_at(int64_t at) const {
    int32_t quad;
    std::memcpy(&quad, w_ + at * 4, 4);
    return quad;
  }
  int32_t expanded(uint8_t codes, int64_t o, int64_t tap, int64_t quad) const;

  Weights kind_;
  const uint8_t* w_;
  WeightShape s_;
  int64_t count_;
  const int32_t* table_;
};

// Sum of the weights of each output (float: 0). Throws kBadWeights on the invalid code.
std::vector<int32_t> weight_sums(Weights weights, const void* w, const WeightShape& shape);

// Ternary codes of rows of i values in {-1, 0, 1}; the last byte of a row is filled with 00.
void pack_codes(const int8_t* w, int64_t rows, int64_t i, uint8_t* codes);

// Number of nonzero quads (float: of nonzero weights), and their fraction of all.
int64_t nonzero_quads(Weights weights, const void* w, const WeightShape& shape);
double density(Weights weights, const void* w, const WeightShape& shape);

}  // namespace tops

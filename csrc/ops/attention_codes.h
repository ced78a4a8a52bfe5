// SPDX-License-Identifier: Apache-2.0
// Attention whose queries, keys and values are codes, a few queries of one head at a time.
#pragma once

#include <cstdint>

#include "kernels/table.h"

namespace tops {

// u8 packets of four channels: those of the first four of a head, and packets from one four to the
// next.
struct CodePackets {
  const uint8_t* data;
  int64_t stride;
  int32_t zero_point;
};

// Of every head: numbers of keys, and packets of channels.
struct HeadSize {
  int64_t keys, depth, width;  // depth: of a query; width: of a value
};

// Room for up to `queries` queries, and the products of one thread at a time. It computes by the
// kernels of the thread that made it.
class CodeAttention {
 public:
  CodeAttention(const HeadSize& size, int64_t queries);
  CodeAttention(const CodeAttention&) = delete;
  CodeAttention& operator=(const CodeAttention&) = delete;

  int64_t scratch_bytes() const;
  // Scores of n queries to shares. bias: its score with the first key, and floats to the next.
  void share(const CodePackets& queries, const CodePackets& keys, int64_t n, float factor,
             const float* bias, int64_t bias_stride, uint8_t* scratch) const;
  // Sums of values by those shares. to: where they go, and the range of what is made.
  void mix(const CodePackets& values, MixArgs to, uint8_t* scratch) const;

 private:
  int64_t key_quads() const { return (size_.keys + 3) / 4; }
  int32_t* scores(uint8_t* scratch) const { return reinterpret_cast<int32_t*>(scratch); }
  int32_t* totals(uint8_t* scratch) const;
  uint8_t* panel(uint8_t* scratch) const;
  int64_t* offsets_of(uint8_t* scratch) const;
  int64_t most_depth() const;
  void product(const CodePackets& x, int64_t depth, int64_t outputs, const int32_t* weight_sums,
               int32_t zero_point, int32_t* y, int64_t n, uint8_t* scratch) const;

  const KernelTable& kernel_;
  HeadSize size_;
  int64_t stride_;  // numbers from one row of scores to the next
};

}  // namespace tops

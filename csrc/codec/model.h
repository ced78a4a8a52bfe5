// SPDX-License-Identifier: Apache-2.0
// Adaptive models of the codec. Encoder and decoder drive the same code with the same values, so
// both sides always hold the same numbers; everything is integer arithmetic, hence the same on
// every machine.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tops::codec {

// Every decision owns an interval [start, start + freq) of [0, 2^16).
constexpr int kScaleBits = 16;
constexpr uint32_t kScale = 1u << kScaleBits;

struct Interval {
  uint32_t start;
  uint32_t freq;
};

// Probability of "yes" as a 32-bit fraction, moved towards each outcome by 1 / (n + 1.5) after n
// outcomes.
class BitModel {
 public:
  uint32_t yes() const { return std::clamp(p_ >> 16, kFloor, kScale - kFloor); }

  void update(bool bit) {
    const uint64_t rate = rates()[n_];
    n_ += n_ < kLimit;
    if (bit) {
      p_ += static_cast<uint32_t>((0xffffffffu - p_) * rate >> 16);
    } else {
      p_ -= static_cast<uint32_t>(p_ * rate >> 16);
    }
  }

  // Called where statistics may jump (a new tensor): what was learned stays as the starting point,
  // but moves fast again.
  void loosen() { n_ = std::min(n_, kLoose); }

 private:
  static constexpr uint32_t kFloor =
      16;  // an outcome never costs more than 12 bits, nor less than 0.0004
  static constexpr uint32_t kLimit = 1024;
  static constexpr uint32_t kLoose = 24;

  static const std::array<uint32_t, kLimit + 1>& rates() {
    static constexpr std::array<uint32_t, kLimit + 1> table = [] {
      std::array<uint32_t, kLimit + 1> t{};
      for (uint32_t n = 0; n <= kLimit; ++n) t[n] = 2 * kScale / (2 * n + 3);
      return t;
    }();
    return table;
  }

  uint32_t p_ = 1u << 31;
  uint32_t n_ = 0;
};

// A table of up to 256 symbols, rebuilt from their counts at growing intervals.
class SymbolModel {
 public:
  explicit SymbolModel(int size) : size_(size), count_(size, kPrior), lookup_(kSlots + kChunk) {
    rebuild();
  }

  Interval interval(int symbol) const { return entry_[symbol]; }
  int find(uint32_t position) const { return lookup_[position >> (kScaleBits - kSlotBits)]; }

  void update(int symbol) {
    count_[symbol] += kStep;
    if (--until_rebuild_ == 0) {
      period_ = std::min(period_ * 2, kMaxPeriod);
      rebuild();
    }
  }

 private:
  static constexpr int kSlotBits = 14;  // freq is a multiple of 4: the lookup table stays at 16 KiB
  static constexpr uint32_t kSlots = 1u << kSlotBits;
  static constexpr uint32_t kChunk = 16;
  static constexpr uint32_t kPrior = 1;
  static constexpr uint32_t kStep = 2;
  static constexpr uint32_t kMaxTotal = 1u << 15;
  static constexpr int kFirstPeriod = 16;
  static constexpr int kMaxPeriod = 512;

  void rebuild();

  int size_;
  int period_ = kFirstPeriod;
  int until_rebuild_ = 0;
  std::vector<uint32_t> count_;
  std::array<Interval, 256> entry_{};
  std::vector<uint8_t> lookup_;
};

}  // namespace tops::codec

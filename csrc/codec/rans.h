// SPDX-License-Identifier: Apache-2.0
// Range asymmetric numeral system, one 64-bit state, renormalized by 32-bit words.
//
// The state x lives in [2^31, 2^63). Coding an interval of width f turns x into (x / f) * 2^16 +
// start + x % f; decoding takes x mod 2^16, finds the interval it lies in and undoes that. The last
// decision coded is the first one decoded, so the writer records intervals and codes them
// backwards, one block at a time to bound the record.
//
// Reader and Writer have the same members, so that the walk over the weights (codec.cpp) is written
// once: the writer is told each decision and returns it, the reader ignores what it is told and
// returns what the stream says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/model.h"

namespace tops::codec {

constexpr uint64_t kStateFloor = 1ull << 31;
constexpr int kWordBytes = 4;
constexpr char kDamaged[] = "The file is damaged: fetch it again.";

class Writer {
 public:
  static constexpr bool kReads = false;

  void begin_block() { record_.clear(); }
  void end_block();
  const std::vector<uint8_t>& bytes() const { return bytes_; }

  bool bit(BitModel& model, bool bit) {
    const uint32_t yes = model.yes();
    record_.push_back(bit ? Interval{0, yes} : Interval{yes, kScale - yes});
    model.update(bit);
    return bit;
  }

  int symbol(SymbolModel& model, int symbol) {
    record_.push_back(model.interval(symbol));
    model.update(symbol);
    return symbol;
  }

 private:
  std::vector<Interval> record_;
  std::vector<uint8_t> bytes_;
};

class Reader {
 public:
  static constexpr bool kReads = true;

  Reader(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  void begin_block() {
    const uint64_t low = word();
    state_ = low | static_cast<uint64_t>(word()) << 32;
    if (state_ < kStateFloor || state_ >> 63)
      damaged("a block that starts with an impossible state");
  }

  void end_block() const {
    if (state_ != kStateFloor) damaged("a block that ends in the wrong state");
  }

  const uint8_t* next() const { return next_; }

  bool bit(BitModel& model, bool) {
    const uint32_t yes = model.yes();
    const uint32_t position = static_cast<uint32_t>(state_) & (kScale - 1);
    const bool bit = position < yes;
    take(bit ? Interval{0, yes} : Interval{yes, kScale - yes}, position);
    model.update(bit);
    return bit;
  }

  int symbol(SymbolModel& model, int) {
    const uint32_t position = static_cast<uint32_t>(state_) & (kScale - 1);
    const int symbol = model.find(position);
    take_much(model.interval(symbol), position);
    model.update(symbol);
    return symbol;
  }

 private:
  // freq >= 4 and state >= 2^31 leave at least 2^17 before the refill: one word always brings the
  // state back to its range.
  void take(Interval in, uint32_t position) {
    state_ = in.freq * (state_ >> kScaleBits) + position - in.start;
    if (state_ < kStateFloor) state_ = state_ << 32 | word();
  }

  // Branchless `take`, for where a refill is likely and unpredictable.
  void take_much(Interval in, uint32_t position) {
    if (end_ - next_ < kWordBytes) return take(in, position);
    const uint64_t state = in.freq * (state_ >> kScaleBits) + position - in.start;
    const uint64_t refilled = state << 32 | peek();
    const bool low = state < kStateFloor;
    state_ = low ? refilled : state;
    next_ += low * kWordBytes;
  }

  uint32_t peek() const {
    return next_[0] | next_[1] << 8 | next_[2] << 16 | static_cast<uint32_t>(next_[3]) << 24;
  }

  uint32_t word() {
    if (end_ - next_ < kWordBytes) damaged("one that ends before its last weight");
    const uint32_t w = peek();
    next_ += kWordBytes;
    return w;
  }

  [[noreturn]] static void damaged(const char* what);

  uint64_t state_ = 0;
  const uint8_t* next_;
  const uint8_t* end_;
};

}  // namespace tops::codec

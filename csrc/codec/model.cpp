// SPDX-License-Identifier: Apache-2.0
#include "codec/model.h"

#include <cstring>

namespace tops::codec {

void SymbolModel::rebuild() {
  uint64_t total = 0;
  for (uint32_t c : count_) total += c;
  if (total > kMaxTotal) {
    total = 0;
    for (uint32_t& c : count_) total += c = (c + 1) / 2;
  }
  // Every symbol keeps one slot, so every value can be coded; the rest is shared in proportion, the
  // remainder of the division going to the most frequent symbol (the first of them).
  //
  // Shares are divided by multiplying: room * count < 2^29 and total <= 2^15 make it exact.
  constexpr int kShift = 45;
  const uint64_t one_part = (uint64_t{1} << kShift) / total + 1;
  const uint64_t room = kSlots - static_cast<uint32_t>(size_);
  uint32_t left = kSlots;
  int most = 0;
  for (int i = 0; i < size_; ++i) {
    entry_[i].freq = 1 + static_cast<uint32_t>(room * count_[i] * one_part >> kShift);
    left -= entry_[i].freq;
    if (count_[i] > count_[most]) most = i;
  }
  entry_[most].freq += left;

  constexpr int kToPosition = kScaleBits - kSlotBits;
  uint32_t slot = 0;
  for (int i = 0; i < size_; ++i) {
    const uint32_t slots = entry_[i].freq;
    // In whole chunks: excess bytes are overwritten by the next symbol, or lie in the slack.
    for (uint32_t at = 0; at < slots; at += kChunk) std::memset(&lookup_[slot + at], i, kChunk);
    entry_[i] = {slot << kToPosition, slots << kToPosition};
    slot += slots;
  }
  until_rebuild_ = period_;
}

}  // namespace tops::codec

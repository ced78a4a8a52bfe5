// SPDX-License-Identifier: Apache-2.0
#include "codec/model.h"

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
  uint32_t left = kSlots;
  for (int i = 0; i < size_; ++i) {
    entry_[i].freq =
        1 + static_cast<uint32_t>((kSlots - size_) * static_cast<uint64_t>(count_[i]) / total);
    left -= entry_[i].freq;
  }
  entry_[std::max_element(count_.begin(), count_.end()) - count_.begin()].freq += left;

  constexpr int kToPosition = kScaleBits - kSlotBits;
  uint32_t slot = 0;
  for (int i = 0; i < size_; ++i) {
    const uint32_t slots = entry_[i].freq;
    std::fill_n(lookup_.begin() + slot, slots, static_cast<uint8_t>(i));
    entry_[i] = {slot << kToPosition, slots << kToPosition};
    slot += slots;
  }
  until_rebuild_ = period_;
}

}  // namespace tops::codec

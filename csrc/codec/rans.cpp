// SPDX-License-Identifier: Apache-2.0
#include "codec/rans.h"

#include <algorithm>

#include "base/error.h"

namespace tops::codec {

void Writer::end_block() {
  std::vector<uint32_t> words;  // last word first
  uint64_t state = kStateFloor;
  for (size_t i = record_.size(); i-- > 0;) {
    const Interval in = record_[i];
    if (state >= static_cast<uint64_t>(in.freq)
                     << 47) {  // (2^31 / 2^16) * 2^32 * freq: coding would leave the range
      words.push_back(static_cast<uint32_t>(state));
      state >>= 32;
    }
    state = (state / in.freq << kScaleBits) + in.start + state % in.freq;
  }
  words.push_back(static_cast<uint32_t>(state >> 32));
  words.push_back(static_cast<uint32_t>(state));
  for (size_t i = words.size(); i-- > 0;) {
    for (int shift = 0; shift < 32; shift += 8)
      bytes_.push_back(static_cast<uint8_t>(words[i] >> shift));
  }
}

void Reader::damaged(const char* what) {
  fail(ErrorKind::kFormatError, "a whole payload", what, kDamaged);
}

}  // namespace tops::codec

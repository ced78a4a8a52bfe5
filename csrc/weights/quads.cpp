// SPDX-License-Identifier: Apache-2.0
#include "weights/quads.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "base/error.h"

namespace tops {
namespace {

constexpr uint64_t kEvenLow = 0x1111111111111111u;  // the low bit of every other code
constexpr uint64_t kLowHalf = 0x0f0f0f0f0f0f0f0fu;
constexpr uint64_t kEvenBytes = 0x00ff00ff00ff00ffu;

// The bits of four int8 from one byte of codes.
int32_t expand(uint8_t codes) {
  uint32_t quad = 0;
  for (int j = 0; j < 4; ++j) {
    const uint32_t code = (codes >> (2 * j)) & 3u;
    quad |= (code == 3 ? 0xffu : code) << (8 * j);
  }
  return static_cast<int32_t>(quad);
}

// expand of every byte, made once.
const std::array<int32_t, 256>& expansions() {
  static const std::array<int32_t, 256> table = [] {
    std::array<int32_t, 256> t{};
    for (size_t i = 0; i < t.size(); ++i) t[i] = expand(static_cast<uint8_t>(i));
    return t;
  }();
  return table;
}

int32_t sum_of(int32_t quad) {
  int32_t sum = 0;
  for (int j = 0; j < 4; ++j) sum += static_cast<int8_t>(quad >> (8 * j));
  return sum;
}

// Up to 8 quads of codes; 0 beyond the end.
uint64_t eight(const uint8_t* codes, int64_t left) {
  uint64_t word = 0;
  if (left >= 8)
    std::memcpy(&word, codes, 8);
  else
    std::memcpy(&word, codes, static_cast<size_t>(left));
  return word;
}

// Per byte: the number of its 4 codes whose low bit is set.
uint64_t low_bits(uint64_t codes) {
  const uint64_t pairs = (codes & kEvenLow) + (codes >> 2 & kEvenLow);
  return (pairs & kLowHalf) + (pairs >> 4 & kLowHalf);
}

int32_t sum_of_bytes(uint64_t bytes) {
  const uint64_t pairs = (bytes & kEvenBytes) + (bytes >> 8 & kEvenBytes);
  return static_cast<int32_t>(pairs * 0x0001000100010001u >> 48);
}

// Sum of codes, which are valid: 01 counts 1, 11 counts 1 - 2.
int32_t sum_of_codes(const uint8_t* codes, int64_t n) {
  constexpr int64_t kMost = 8 * (255 / 4);  // bytes whose counts fit a byte
  int32_t sum = 0;
  for (int64_t first = 0; first < n; first += kMost) {
    uint64_t low = 0, high = 0;
    for (int64_t at = first; at < std::min(first + kMost, n); at += 8) {
      const uint64_t word = eight(codes + at, n - at);
      low += low_bits(word);
      high += low_bits(word >> 1);
    }
    sum += sum_of_bytes(low) - 2 * sum_of_bytes(high);
  }
  return sum;
}

bool valid_codes(const uint8_t* codes, int64_t n) {
  unsigned invalid = 0;
  for (int64_t at = 0; at < n; ++at) invalid |= codes[at] & 0xaau & ~(codes[at] << 1);
  return !invalid;
}

}  // namespace

void bad_code(int64_t o, int64_t tap, int64_t c) {
  fail(ErrorKind::kBadWeights, "codes 00, 01 or 11",
       "10 at output " + std::to_string(o) + ", tap " + std::to_string(tap) + ", input channel " +
           std::to_string(c),
       "Pack weights with ternary_ops.ops.codes.pack_codes.");
}

Quads::Quads(Weights kind, const void* w, const WeightShape& s)
    : kind_(kind),
      w_(static_cast<const uint8_t*>(w)),
      s_(s),
      count_(s.quads()),
      table_(expansions().data()) {}

int32_t Quads::expanded(uint8_t codes, int64_t o, int64_t tap, int64_t quad) const {
  const int invalid = codes & 0xaa & ~(codes << 1);
  if (invalid) bad_code(o, tap, quad * 4 + __builtin_ctz(static_cast<unsigned>(invalid)) / 2);
  return table_[codes];
}

void Quads::append_nonzero(int64_t o, int64_t first_packet, std::vector<Entry>* entries) const {
  const int64_t taps = s_.r * s_.s;
  const auto entry = [&](int64_t tap, int64_t quad, int32_t bits) {
    return Entry{static_cast<int32_t>((first_packet + quad) * taps + tap), bits};
  };
  if (kind_ == Weights::kInt8) {
    for (int64_t quad = 0; quad < count_; ++quad)
      for (int64_t tap = 0; tap < taps; ++tap)
        if (const int32_t bits = (*this)(o, tap, quad)) entries->push_back(entry(tap, quad, bits));
    return;
  }
  // Read by taps, as they lie; then every quad's entries move to their place.
  std::vector<std::pair<int64_t, Entry>> found;
  std::vector<size_t> place(static_cast<size_t>(count_ + 1), entries->size());
  for (int64_t tap = 0; tap < taps; ++tap) {
    const uint8_t* const codes = w_ + (o * taps + tap) * count_;
    for (int64_t at = 0; at < count_; at += 8) {
      uint64_t word = eight(codes + at, count_ - at);
      while (word) {
        const int64_t byte = __builtin_ctzll(word) / 8, quad = at + byte;
        word &= ~(uint64_t{0xff} << (8 * byte));
        found.emplace_back(quad, entry(tap, quad, expanded(codes[quad], o, tap, quad)));
        ++place[static_cast<size_t>(quad + 1)];
      }
    }
  }
  for (size_t quad = 1; quad < place.size(); ++quad) place[quad] += place[quad - 1] - place[0];
  entries->resize(entries->size() + found.size());
  for (const auto& [quad, e] : found) (*entries)[place[static_cast<size_t>(quad)]++] = e;
}

std::vector<int32_t> weight_sums(Weights weights, const void* w, const WeightShape& s) {
  std::vector<int32_t> sums(static_cast<size_t>(s.o), 0);
  if (weights == Weights::kFloat) return sums;
  const Quads quad(weights, w, s);
  const int64_t taps = s.r * s.s, count = s.quads();
  for (int64_t o = 0; o < s.o; ++o) {
    int32_t& sum = sums[static_cast<size_t>(o)];
    const uint8_t* const codes = static_cast<const uint8_t*>(w) + o * taps * count;
    if (weights == Weights::kTernary && valid_codes(codes, taps * count)) {
      sum = sum_of_codes(codes, taps * count);
      continue;
    }
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t q = 0; q < count; ++q) sum += sum_of(quad(o, tap, q));
  }
  return sums;
}

void pack_codes(const int8_t* w, int64_t rows, int64_t i, uint8_t* codes) {
  const int64_t whole = i / 4;
  for (int64_t row = 0; row < rows; ++row, w += i) {
    for (int64_t q = 0; q < whole; ++q) {
      uint32_t quad;
      std::memcpy(&quad, w + q * 4, 4);
      // The low bits of the four bytes meet in the highest one.
      *codes++ = static_cast<uint8_t>((quad & 0x03030303u) * 0x01041040u >> 24);
    }
    if (i % 4) {
      uint32_t last = 0;
      for (int64_t j = 0; j < i % 4; ++j)
        last |= (static_cast<uint32_t>(w[whole * 4 + j]) & 3u) << (2 * j);
      *codes++ = static_cast<uint8_t>(last);
    }
  }
}

int64_t nonzero_quads(Weights weights, const void* w, const WeightShape& s) {
  const int64_t all = s.o * s.r * s.s * (weights == Weights::kFloat ? s.i : s.quads());
  int64_t kept = 0;
  if (weights == Weights::kTernary) {
    for (int64_t k = 0; k < all; ++k) kept += static_cast<const uint8_t*>(w)[k] != 0;
  } else {
    // A quad of int8 and a float are zero when their bits are, but for the float -0.
    for (int64_t k = 0; k < all; ++k) {
      uint32_t bits;
      std::memcpy(&bits, static_cast<const uint8_t*>(w) + k * 4, 4);
      kept += weights == Weights::kFloat ? bits << 1 != 0 : bits != 0;
    }
  }
  return kept;
}

double density(Weights weights, const void* w, const WeightShape& s) {
  const int64_t all = s.o * s.r * s.s * (weights == Weights::kFloat ? s.i : s.quads());
  return all ? static_cast<double>(nonzero_quads(weights, w, s)) / static_cast<double>(all) : 0.0;
}

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "weights/packed_rows.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace tops {
namespace {

constexpr char kMagic[8] = {'T', 'O', 'P', 'S', 'R', 'O', 'W', 'S'};
constexpr int32_t kVersion = 1;

// 64 bytes, so that what follows stays aligned to a cache line. Little-endian.
struct WeightRowsHeader {
  char magic[8];
  int32_t version, codes;
  int64_t n, k, tail_bytes;
  uint8_t pad[24];
};
static_assert(sizeof(WeightRowsHeader) == 64, "the header is part of the layout");

int64_t numbers_of(RowCodes codes) {
  return codes == RowCodes::kInt8 ? 1 : codes == RowCodes::kTwoBit ? 4 : 5;
}

int64_t sum_bytes(int64_t n) { return divide_up(n * 4, kRowBlock) * kRowBlock; }

// Weights + 1 of every byte of codes; 3 for the invalid code.
struct DecodeTable {
  uint32_t quad[256];
  DecodeTable() {
    constexpr uint32_t plus_one[4] = {1, 2, 3, 0};
    for (uint32_t b = 0; b < 256; ++b)
      quad[b] = plus_one[b & 3] | plus_one[b >> 2 & 3] << 8 | plus_one[b >> 4 & 3] << 16 |
                plus_one[b >> 6] << 24;
  }
};

// One row of codes as numbers 0, 1, 2; returns the sum of its weights.
int32_t decode_row(const uint8_t* codes, int64_t row, int64_t k, uint8_t* numbers) {
  static const DecodeTable table;
  for (int64_t q = 0; q < divide_up(k, 4); ++q)
    std::memcpy(numbers + q * 4, &table.quad[codes[q]], 4);
  int32_t sum = 0;
  bool bad = false;
  for (int64_t i = 0; i < k; ++i) {
    sum += numbers[i] - 1;
    bad |= numbers[i] == 3;
  }
  if (bad) bad_code(row, 0, std::find(numbers, numbers + k, 3) - numbers);
  for (int64_t i = k; i < divide_up(k, 4) * 4; ++i) numbers[i] = 1;
  return sum;
}

void join_two_bits(const uint8_t* numbers, int64_t blocks, uint8_t* to) {
  for (int64_t b = 0; b < blocks; ++b, numbers += 4 * kRowBlock, to += kRowBlock)
    for (int64_t i = 0; i < kRowBlock; ++i)
      to[i] =
          static_cast<uint8_t>(numbers[i] | numbers[kRowBlock + i] << 2 |
                               numbers[2 * kRowBlock + i] << 4 | numbers[3 * kRowBlock + i] << 6);
}

void join_base_three(const uint8_t* numbers, int64_t blocks, uint8_t* to) {
  for (int64_t b = 0; b < blocks; ++b, numbers += 5 * kRowBlock, to += kRowBlock)
    for (int64_t i = 0; i < kRowBlock; ++i) {
      uint32_t number = 0;
      for (int64_t j = 0; j < 5; ++j) number = number * 3 + numbers[j * kRowBlock + i];
      to[i] = static_cast<uint8_t>((number * 256 + 242) / 243);
    }
}

int8_t weight_of(RowCodes codes, const uint8_t* row, int64_t k) {
  const int64_t numbers = numbers_of(codes), width = numbers * kRowBlock;
  const int64_t j = k % width / kRowBlock;
  uint32_t byte = row[k / width * kRowBlock + k % kRowBlock];
  if (codes == RowCodes::kInt8) return static_cast<int8_t>(byte);
  if (codes == RowCodes::kTwoBit) return static_cast<int8_t>((byte >> (2 * j) & 3) - 1);
  for (int64_t digit = 0; digit < j; ++digit) byte = byte * 3 & 0xff;
  return static_cast<int8_t>((byte * 3 >> 8) - 1);
}

}  // namespace

int64_t row_bytes_of(RowCodes codes, int64_t k) {
  return divide_up(k, kRowBlock * numbers_of(codes)) * kRowBlock;
}

int64_t WeightRows::width() const { return row_bytes * numbers_of(codes); }

bool weight_rows_fit(Weights weights, int64_t k) {
  // 4 * 2 * 128 * K, and room for K rounded up to whole blocks.
  return weights == Weights::kInt8 || (weights == Weights::kTernary && k <= 2'000'000);
}

Buffer pack_weight_rows(RowCodes codes, const void* plain, int64_t n, int64_t k,
                        int64_t tail_bytes) {
  const Weights weights = codes == RowCodes::kInt8 ? Weights::kInt8 : Weights::kTernary;
  check_shape({n, 1, 1, k, 1}, weights);
  if (!weight_rows_fit(weights, k))
    fail(ErrorKind::kUnsupportedShape, "weight rows of at most 2,000,000 weights",
         std::to_string(k), "Pack the layer as sparse.");
  const int64_t row_bytes = row_bytes_of(codes, k), quads = divide_up(k, 4);
  const int64_t at = static_cast<int64_t>(sizeof(WeightRowsHeader)) + sum_bytes(n);
  Buffer blob(at + checked_mul(n, row_bytes) + tail_bytes);
  WeightRowsHeader h{};
  std::memcpy(h.magic, kMagic, 8);
  h.version = kVersion;
  h.codes = static_cast<int32_t>(codes);
  h.n = n, h.k = k, h.tail_bytes = tail_bytes;
  std::memset(blob.data(), 0, static_cast<size_t>(at));
  std::memcpy(blob.data(), &h, sizeof(h));
  int32_t* const sums = reinterpret_cast<int32_t*>(blob.data() + sizeof(h));
  uint8_t* to = blob.data() + at;
  std::vector<uint8_t> numbers(static_cast<size_t>(row_bytes * numbers_of(codes) + 4), 1);
  for (int64_t row = 0; row < n; ++row, to += row_bytes) {
    if (codes == RowCodes::kInt8) {
      const int8_t* const w = static_cast<const int8_t*>(plain) + row * quads * 4;
      for (int64_t i = 0; i < k; ++i) sums[row] += w[i];
      std::memset(to, 0, static_cast<size_t>(row_bytes));
      std::memcpy(to, w, static_cast<size_t>(k));
      continue;
    }
    const uint8_t* const w = static_cast<const uint8_t*>(plain) + row * quads;
    sums[row] = decode_row(w, row, k, numbers.data());
    if (codes == RowCodes::kTwoBit)
      join_two_bits(numbers.data(), row_bytes / kRowBlock, to);
    else
      join_base_three(numbers.data(), row_bytes / kRowBlock, to);
  }
  return blob;
}

bool is_weight_rows(const uint8_t* blob, int64_t bytes) {
  return bytes >= static_cast<int64_t>(sizeof(WeightRowsHeader)) &&
         std::memcmp(blob, kMagic, 8) == 0;
}

WeightRows view_weight_rows(const uint8_t* blob, int64_t bytes) {
  if (!is_weight_rows(blob, bytes)) bad_blob("unknown header");
  WeightRowsHeader h;
  std::memcpy(&h, blob, sizeof(h));
  if (h.version != kVersion || h.codes < 0 || h.codes > 2) bad_blob("unknown kind");
  if (reinterpret_cast<uintptr_t>(blob) % 8) bad_blob("not aligned to 8 bytes");
  WeightRows v;
  v.codes = static_cast<RowCodes>(h.codes);
  v.n = h.n, v.k = h.k, v.tail_bytes = h.tail_bytes;
  check_shape({h.n, 1, 1, h.k, 1}, v.weights());
  if (!weight_rows_fit(v.weights(), h.k)) bad_blob("too many columns");
  v.row_bytes = row_bytes_of(v.codes, h.k);
  const int64_t at = static_cast<int64_t>(sizeof(h)) + sum_bytes(h.n);
  if (h.tail_bytes < 0 || h.tail_bytes > bytes ||
      bytes != at + checked_mul(h.n, v.row_bytes) + h.tail_bytes)
    bad_blob("size");
  v.sums = reinterpret_cast<const int32_t*>(blob + sizeof(h));
  v.data = blob + at;
  v.tail = v.data + h.n * v.row_bytes;
  return v;
}

std::vector<uint8_t> unpack_weight_rows(const WeightRows& rows) {
  const bool ternary = rows.codes != RowCodes::kInt8;
  const int64_t quads = divide_up(rows.k, 4), stored = ternary ? quads : 4 * quads;
  std::vector<uint8_t> plain(static_cast<size_t>(rows.n * stored), 0);
  for (int64_t n = 0; n < rows.n; ++n)
    for (int64_t k = 0; k < rows.k; ++k) {
      const int8_t w = weight_of(rows.codes, rows.data + n * rows.row_bytes, k);
      uint8_t& byte = plain[static_cast<size_t>(n * stored + (ternary ? k / 4 : k))];
      byte =
          ternary ? static_cast<uint8_t>(byte | (w & 3) << (2 * (k % 4))) : static_cast<uint8_t>(w);
    }
  return plain;
}

}  // namespace tops

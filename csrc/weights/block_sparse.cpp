// SPDX-License-Identifier: Apache-2.0
#include "weights/block_sparse.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "tensor/tensor.h"

namespace tops {
namespace {

constexpr int64_t kValuesPad = 64;  // the widest vector of 16-bit values may be read past the last
constexpr std::array<int64_t, 3> kChannels = {1, 2, 4};
// Time of an entry by its channels, in entries of one: measured (docs/kernels.md). Eight would
// leave one vector of pixels for the registers of AVX2, and gain nothing over four.
constexpr std::array<double, 3> kCost = {1.0, 1.55, 2.2};
// Tiles of pixels that each block of weights meets in turn: their part of the input stays in the
// first two levels of the cache, and the weights are read, and widened, once for all of them.
constexpr int64_t kTiles = 4;

struct Column {
  int32_t at;
  uint32_t nonzero;  // one bit an output channel of the block
  std::array<float, kBlock> w;
};

// The nonzero columns of kBlock output channels from o on.
std::vector<Column> columns_of(const float* w, const WeightShape& s, int64_t o) {
  const int64_t taps = s.r * s.s, per_group = s.o / s.groups, end = std::min(o + kBlock, s.o);
  const int64_t first = o / per_group * s.i, last = ((end - 1) / per_group + 1) * s.i;
  std::vector<Column> list(static_cast<size_t>((last - first) * taps));
  for (size_t k = 0; k < list.size(); ++k)
    list[k].at = static_cast<int32_t>(first * taps) + static_cast<int32_t>(k);
  for (int64_t j = 0; j < end - o; ++j) {
    const float* const row = w + (o + j) * taps * s.i;
    const int64_t from = (o + j) / per_group * s.i - first;
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t c = 0; c < s.i; ++c) {
        const float v = row[t * s.i + c];
        if (v == 0.0f) continue;
        if (!std::isfinite(v))
          fail(ErrorKind::kBadWeights, "finite weights",
               std::to_string(v) + " at output " + std::to_string(o + j) + ", tap " +
                   std::to_string(t) + ", input channel " + std::to_string(c),
               "Train or load them anew.");
        Column& column = list[static_cast<size_t>((from + c) * taps + t)];
        column.nonzero |= 1u << j;
        column.w[static_cast<size_t>(j)] = v;
      }
  }
  list.erase(std::remove_if(list.begin(), list.end(), [](const Column& c) { return !c.nonzero; }),
             list.end());
  return list;
}

bool shares(const Column& c, int64_t channels, int64_t group) {
  return c.nonzero >> (group * channels) & ((1u << channels) - 1);
}

int64_t cheapest(const std::vector<std::vector<Column>>& blocks) {
  size_t best = 0;
  double least = HUGE_VAL;
  for (size_t i = 0; i < kChannels.size(); ++i) {
    int64_t entries = 0;
    for (const auto& block : blocks)
      for (const Column& c : block)
        for (int64_t g = 0; g < kBlock / kChannels[i]; ++g) entries += shares(c, kChannels[i], g);
    const double cost = static_cast<double>(entries) * kCost[i];
    if (cost <= least) least = cost, best = i;
  }
  return kChannels[best];
}

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

bool exact_bfloat16(float v) { return (bits_of(v) & 0xffff) == 0; }

bool exact_float16(float v) {
  const float a = std::fabs(v);
  if (a >= 0x1p-14f) return a <= 65504.0f && (bits_of(v) & 0x1fff) == 0;
  return a * 0x1p24f == std::floor(a * 0x1p24f);
}

uint16_t to_float16(float v) {
  const float a = std::fabs(v);
  const uint32_t sign = bits_of(v) >> 16 & 0x8000;
  const uint32_t magnitude =
      a >= 0x1p-14f ? (bits_of(a) >> 13) - (112u << 10) : static_cast<uint32_t>(a * 0x1p24f);
  return static_cast<uint16_t>(sign | magnitude);
}

Values smallest_exact(const std::vector<float>& values) {
  if (std::all_of(values.begin(), values.end(), exact_bfloat16)) return Values::kBfloat16;
  if (std::all_of(values.begin(), values.end(), exact_float16)) return Values::kFloat16;
  return Values::kFloat32;
}

int64_t size_of(Values v) { return v == Values::kFloat32 ? 4 : 2; }

void append_values(std::vector<uint8_t>& blob, const std::vector<float>& values, Values kind) {
  if (kind == Values::kFloat32) return append(blob, values.data(), values.size());
  for (const float v : values) {
    const uint16_t half =
        kind == Values::kBfloat16 ? static_cast<uint16_t>(bits_of(v) >> 16) : to_float16(v);
    append(blob, &half, 1);
  }
}

}  // namespace

void append_blocks(std::vector<uint8_t>& blob, const float* w, const WeightShape& s) {
  std::vector<std::vector<Column>> blocks;
  for (int64_t o = 0; o < s.o; o += kBlock) blocks.push_back(columns_of(w, s, o));
  const int64_t channels = cheapest(blocks);
  std::vector<int64_t> row_ptr{0};
  std::vector<int32_t> columns;
  std::vector<float> values;
  for (const auto& block : blocks)
    for (int64_t g = 0; g < kBlock / channels; ++g) {
      for (const Column& c : block)
        if (shares(c, channels, g)) {
          columns.push_back(c.at);
          values.insert(values.end(), c.w.begin() + g * channels, c.w.begin() + (g + 1) * channels);
        }
      row_ptr.push_back(static_cast<int64_t>(columns.size()));
    }
  columns.resize(columns.size() + columns.size() % 2);  // what follows stays aligned
  const Values kind = smallest_exact(values);
  const std::array<int32_t, 2> head = {static_cast<int32_t>(channels), static_cast<int32_t>(kind)};
  append(blob, head.data(), head.size());
  append(blob, row_ptr.data(), row_ptr.size());
  append(blob, columns.data(), columns.size());
  append_values(blob, values, kind);
  blob.resize(blob.size() + kValuesPad);
}

BlockView view_blocks(BlobReader& blob, const WeightShape& s) {
  const int32_t* const head = blob.take<int32_t>(2);
  BlockView v;
  v.channels = head[0];
  if (std::find(kChannels.begin(), kChannels.end(), v.channels) == kChannels.end() || head[1] < 0 ||
      head[1] > 2)
    bad_blob("unknown blocks");
  v.values = static_cast<Values>(head[1]);
  const int64_t groups = divide_up(s.o, kBlock) * (kBlock / v.channels);
  v.row_ptr = blob.take_row_ptr(groups, sizeof(int32_t));
  v.count = v.row_ptr[groups];
  v.columns = blob.take<int32_t>(v.count + v.count % 2);
  v.data = blob.take<uint8_t>(v.count * v.channels * size_of(v.values));
  blob.take<uint8_t>(kValuesPad);
  return v;
}

int64_t BlockView::most_values(int64_t outputs) const {
  const int64_t rows = kBlock / channels;
  int64_t most = 0;
  for (int64_t b = 0; b < divide_up(outputs, kBlock); ++b)
    most = std::max(most, row_ptr[(b + 1) * rows] - row_ptr[b * rows]);
  return most * channels;
}

BlockArgs BlockView::place(const std::vector<int32_t>& offset_of_column,
                           std::vector<int32_t>& offsets) const {
  uint32_t last = 0;  // a negative column is a large one here
  for (int64_t i = 0; i < count; ++i) last = std::max(last, static_cast<uint32_t>(columns[i]));
  if (count && last >= offset_of_column.size()) bad_blob("an entry points outside the filter");
  BlockArgs args{channels, row_ptr, columns, data, values, kTiles};
  bool same = true;
  for (size_t i = 0; i < offset_of_column.size(); ++i)
    same = same && offset_of_column[i] == static_cast<int32_t>(i);
  if (same) return args;
  offsets.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < offsets.size(); ++i)
    offsets[i] = offset_of_column[static_cast<size_t>(columns[i])];
  args.offsets = offsets.data();
  return args;
}

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "weights/packed.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "isa/isa.h"
#include "tensor/tensor.h"
#include "weights/overflow_groups.h"

namespace tops {
namespace {

constexpr char kMagic[8] = {'T', 'O', 'P', 'S', 'P', 'A', 'C', 'K'};
constexpr int32_t kVersion = 3;
// Shorter filters do not pay for the smaller tiles of pixels that pairs of channels leave room for.
constexpr int64_t kPairRows = 64;

float float_at(const void* w, const WeightShape& s, int64_t o, int64_t tap, int64_t c) {
  return static_cast<const float*>(w)[(o * s.r * s.s + tap) * s.i + c];
}

bool dense_possible(const WeightShape& s, Weights weights) {
  if (s.groups == 1) return true;
  return (weights == Weights::kFloat || s.i % 4 == 0) && (s.o / s.groups) % kBlock == 0;
}

// Four weights of one natural packet (channels 4 packet .. 4 packet + 3 of the whole input) that
// belong to the group of output o, whose first channel may lie anywhere in a packet.
int32_t quad_at(const Quads& w, const WeightShape& s, int64_t first, int64_t o, int64_t tap,
                int64_t packet) {
  uint32_t quad = 0;
  for (int64_t j = 0; j < 4; ++j) {
    const int64_t c = packet * 4 + j - first;
    if (c >= 0 && c < s.i)
      quad |= static_cast<uint32_t>(static_cast<uint8_t>(w.value(o, tap, c))) << (8 * j);
  }
  return static_cast<int32_t>(quad);
}

void append_sparse(std::vector<uint8_t>& blob, Weights kind, const void* w, const WeightShape& s) {
  const int64_t taps = s.r * s.s, per_group = s.groups ? s.o / s.groups : 0;
  const Quads quad(kind, w, s);
  std::vector<int64_t> row_ptr{0};
  std::vector<Entry> entries;
  std::vector<int32_t> overflow_groups;
  entries.reserve(static_cast<size_t>(nonzero_quads(kind, w, s)));
  for (int64_t o = 0; o < s.o; ++o) {
    const int64_t first = (o / per_group) * s.i, last = first + s.i, first_packet = first / 4;
    const size_t begin = entries.size();
    if (first % 4 == 0) {
      quad.append_nonzero(o, first_packet, &entries);
    } else {
      for (int64_t packet = first_packet; packet * 4 < last; ++packet)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int32_t bits = quad_at(quad, s, first, o, tap, packet);
          if (bits) entries.push_back({static_cast<int32_t>(packet * taps + tap), bits});
        }
    }
    if (kind == Weights::kInt8) make_overflow_groups(begin, &entries, &overflow_groups);
    row_ptr.push_back(static_cast<int64_t>(entries.size()));
  }
  append(blob, row_ptr.data(), row_ptr.size());
  append(blob, overflow_groups.data(), overflow_groups.size());
  append(blob, entries.data(), entries.size());
}

void append_pairs(std::vector<uint8_t>& blob, const void* w, const WeightShape& s) {
  const int64_t taps = s.r * s.s;
  const Quads quad(Weights::kInt8, w, s);
  std::vector<int64_t> row_ptr{0};
  std::vector<PairEntry> entries;
  std::vector<int32_t> overflow_groups;
  for (int64_t o = 0; o < s.o; o += 2) {
    const size_t begin = entries.size();
    for (int64_t packet = 0; packet < s.quads(); ++packet)
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int32_t a = quad(o, tap, packet), b = o + 1 < s.o ? quad(o + 1, tap, packet) : 0;
        if (a || b) entries.push_back({static_cast<int32_t>(packet * taps + tap), {a, b}});
      }
    make_overflow_groups(begin, &entries, &overflow_groups);
    row_ptr.push_back(static_cast<int64_t>(entries.size()));
  }
  append(blob, row_ptr.data(), row_ptr.size());
  append(blob, overflow_groups.data(), overflow_groups.size());
  append(blob, entries.data(), entries.size());
}

int64_t dense_rows(Weights kind, const WeightShape& s) {
  return (kind == Weights::kFloat ? s.i : s.quads()) * s.r * s.s;
}

int64_t panel_bytes_of(Weights kind, int64_t k) {
  if (kind == Weights::kTernary) return checked_mul(divide_up(k, kGroup), kGroup * kBlock);
  return checked_mul(k, kBlock * 4);
}

// One row of 8 quads or floats into a panel of int8 or float weights.
template <class T>
void put_row(uint8_t* panel, int64_t row, int64_t o, T value) {
  std::memcpy(panel + (row * kBlock + o) * 4, &value, 4);
}

void append_dense(std::vector<uint8_t>& blob, Weights kind, const void* w, const WeightShape& s) {
  const int64_t k = dense_rows(kind, s), taps = s.r * s.s, bytes = panel_bytes_of(kind, k);
  const Quads quad(kind, w, s);
  std::vector<uint8_t> panel(static_cast<size_t>(bytes));
  for (int64_t first = 0; first < s.o; first += kBlock) {
    std::fill(panel.begin(), panel.end(), uint8_t{0});
    for (int64_t o = 0; o < std::min(kBlock, s.o - first); ++o)
      for (int64_t row = 0; row < k; ++row) {
        const int64_t tap = row % taps, packet = row / taps;
        if (kind == Weights::kFloat) {
          put_row(panel.data(), row, o, float_at(w, s, first + o, tap, packet));
        } else if (kind == Weights::kInt8) {
          put_row(panel.data(), row, o, quad(first + o, tap, packet));
        } else {
          const uint32_t bits = static_cast<uint32_t>(quad(first + o, tap, packet));
          const int64_t in_group = row % kGroup;
          uint8_t* const to =
              &panel[static_cast<size_t>(row / kGroup * 64 + in_group % 2 * 32 + o * 4)];
          for (int j = 0; j < 4; ++j)
            to[j] = static_cast<uint8_t>(to[j] | ((bits >> (8 * j)) & 3) << (in_group / 2 * 2));
        }
      }
    append(blob, panel.data(), panel.size());
  }
}

PackedHeader read_header(const uint8_t* bytes, int64_t size) {
  PackedHeader h;
  if (size < static_cast<int64_t>(sizeof(h))) bad_blob("too short");
  std::memcpy(&h, bytes, sizeof(h));
  if (std::memcmp(h.magic, kMagic, 8) != 0 || h.version != kVersion) bad_blob("unknown header");
  if (h.weights < 0 || h.weights > 2 || h.sparse < 0 || h.sparse > 1 || h.paired < 0 ||
      h.paired > 1)
    bad_blob("unknown kind");
  if (reinterpret_cast<uintptr_t>(bytes) % 8) bad_blob("not aligned to 8 bytes");
  return h;
}

// [rows][most]: how many overflow groups of `most` entries, down to one, each row has; together
// they hold the entries of the row.
const int32_t* take_overflow_groups(BlobReader& blob, int64_t rows, int64_t most,
                                    const int64_t* row_ptr) {
  const int32_t* const groups = blob.take<int32_t>(rows * most);
  for (int64_t o = 0; o < rows; ++o) {
    int64_t count = 0;
    for (int64_t i = 0; i < most; ++i) {
      if (groups[o * most + i] < 0) bad_blob("overflow groups");
      count += groups[o * most + i] * (most - i);
    }
    if (count != row_ptr[o + 1] - row_ptr[o]) bad_blob("overflow groups");
  }
  return groups;
}

void view_pairs(BlobReader& blob, PackedView& v) {
  const int64_t pairs = (v.shape.o + 1) / 2;
  v.pair_row_ptr = blob.take_row_ptr(pairs, sizeof(PairEntry));
  v.pair_overflow_groups = take_overflow_groups(blob, pairs, kPairOverflowGroup, v.pair_row_ptr);
  v.pairs = blob.take<PairEntry>(v.pair_count());
}

void view_sparse(BlobReader& blob, PackedView& v) {
  v.row_ptr = blob.take_row_ptr(v.shape.o, sizeof(Entry));
  if (v.weights == Weights::kInt8)
    v.overflow_groups = take_overflow_groups(blob, v.shape.o, kOverflowGroup, v.row_ptr);
  v.entries = blob.take<Entry>(v.entry_count());
}

void view_dense(BlobReader& blob, PackedView& v) {
  if (!dense_possible(v.shape, v.weights)) bad_blob("groups");
  v.k = dense_rows(v.weights, v.shape);
  v.panel_bytes = panel_bytes_of(v.weights, v.k);
  v.panels = blob.take<uint8_t>(checked_mul(divide_up(v.shape.o, kBlock), v.panel_bytes));
}

}  // namespace

void check_shape(const WeightShape& s, Weights weights) {
  const ErrorKind kind = ErrorKind::kUnsupportedShape;
  const std::string shape = "O=" + std::to_string(s.o) + " R=" + std::to_string(s.r) +
                            " S=" + std::to_string(s.s) + " I=" + std::to_string(s.i) +
                            " groups=" + std::to_string(s.groups);
  if (s.o < 0 || s.r < 1 || s.s < 1 || s.i < 0 || s.groups < 1)
    fail(kind, "weights of O >= 0, R, S >= 1, I >= 0 and groups >= 1", shape,
         "Correct the layer's arguments.");
  if (s.o % s.groups)
    fail(kind, "output channels that divide by groups", shape, "Correct the layer's arguments.");
  const int64_t k = checked_mul(checked_mul(s.r, s.s), s.i);
  checked_mul(checked_mul(k, s.groups), 1);
  checked_mul(k, s.o);
  // 255 * max|w| * K must fit int32, and sparse entries number taps x packets with 31 bits.
  const int64_t most = weights == Weights::kInt8 ? 2147483647 / (255 * 128) : 2147483647 / 255;
  if (weights != Weights::kFloat && k > most)
    fail(kind, "integer sums of at most " + std::to_string(most) + " products",
         std::to_string(k) + ", which could overflow int32", "Keep this layer in float32.");
  if (checked_mul(checked_mul(s.r, s.s), s.channels() + 4) > 2147483647)
    fail(kind, "a filter of less than 2**31 weights", shape, "Split the layer.");
}

std::vector<uint8_t> pack_weights(bool sparse, Weights weights, const void* w,
                                  const WeightShape& s) {
  check_shape(s, weights);
  if (!dense_possible(s, weights)) sparse = true;
  PackedHeader h{};
  std::memcpy(h.magic, kMagic, 8);
  h.version = kVersion;
  h.sparse = sparse;
  h.weights = static_cast<int32_t>(weights);
  h.paired = sparse && weights == Weights::kInt8 && s.groups == 1 &&
             dense_rows(weights, s) >= kPairRows &&
             density(weights, w, s) >= kernels().sparse_below.pairs_from;
  h.o = s.o, h.r = s.r, h.s = s.s, h.i = s.i, h.groups = s.groups;
  std::vector<uint8_t> blob;
  append(blob, &h, 1);
  std::vector<int32_t> sums = weight_sums(weights, w, s);
  if (s.o % 2) sums.push_back(0);  // so that what follows stays 8-byte aligned
  append(blob, sums.data(), sums.size());
  if (h.paired)
    append_pairs(blob, w, s);
  else if (sparse && weights == Weights::kFloat)
    append_blocks(blob, static_cast<const float*>(w), s);
  else if (sparse)
    append_sparse(blob, weights, w, s);
  else
    append_dense(blob, weights, w, s);
  return blob;
}

std::vector<uint8_t> pack_filter_rows(Weights kind, const void* w, WeightShape s,
                                      WeightShape* packed) {
  const int64_t quads_a_row = (s.s * s.i + 3) / 4, unit = kind == Weights::kInt8 ? 4 : 1;
  *packed = {s.o, s.r, quads_a_row, 4, 1};
  const Quads source(kind, w, s);
  std::vector<uint8_t> rows(static_cast<size_t>(s.o * s.r * quads_a_row * unit), 0);
  for (int64_t row = 0; row < s.o * s.r; ++row)
    for (int64_t t = 0; t < s.s * s.i; ++t) {
      const int64_t o = row / s.r, tap = row % s.r * s.s + t / s.i;
      const int8_t value = source.value(o, tap, t % s.i);
      uint8_t* const quad = &rows[static_cast<size_t>((row * quads_a_row + t / 4) * unit)];
      if (kind == Weights::kInt8)
        quad[t % 4] = static_cast<uint8_t>(value);
      else
        *quad = static_cast<uint8_t>(*quad | ((value & 3) << (2 * (t % 4))));
    }
  return rows;
}

PackedView view_packed(const uint8_t* bytes, int64_t size) {
  const PackedHeader h = read_header(bytes, size);
  PackedView v;
  v.shape = {h.o, h.r, h.s, h.i, h.groups};
  v.weights = static_cast<Weights>(h.weights);
  v.sparse = h.sparse;
  check_shape(v.shape, v.weights);
  const int64_t channels = checked_mul(h.i, h.groups);
  v.packets = v.weights == Weights::kFloat ? channels : (channels + 3) / 4;
  BlobReader blob(bytes + sizeof(h), size - static_cast<int64_t>(sizeof(h)));
  v.sums = blob.take<int32_t>(h.o + h.o % 2);
  if (!v.sparse)
    view_dense(blob, v);
  else if (h.paired)
    view_pairs(blob, v);
  else if (v.weights == Weights::kFloat)
    v.blocks = view_blocks(blob, v.shape);
  else
    view_sparse(blob, v);
  if (blob.left()) bad_blob("size");
  return v;
}

bool prefer_sparse(Weights weights, double density, int64_t r, int64_t s) {
  const SparseBelow& below = kernels().sparse_below;
  if (weights == Weights::kFloat) return density < below.real;
  if (weights == Weights::kInt8) return density < below.int8;
  return density < (r * s > 1 ? below.ternary : below.pointwise);
}

}  // namespace tops

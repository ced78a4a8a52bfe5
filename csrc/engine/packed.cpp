// SPDX-License-Identifier: Apache-2.0
#include "engine/packed.h"

#include <cstring>
#include <string>

#include "engine/grid.h"
#include "isa/error.h"
#include "isa/isa.h"

namespace tops {
namespace {

constexpr char kMagic[8] = {'T', 'O', 'P', 'S', 'P', 'A', 'C', 'K'};
constexpr int32_t kVersion = 1;

int64_t quads(const WeightShape& s) { return (s.i + 3) / 4; }

// The weight of output o, tap t, input channel c of the group, as int8; code 10 throws.
int8_t integer_at(Weights kind, const void* w, const WeightShape& s, int64_t o, int64_t tap,
                  int64_t c) {
  const int64_t row = (o * s.r * s.s + tap) * quads(s);
  if (kind == Weights::kInt8) return static_cast<const int8_t*>(w)[row * 4 + c];
  const int code = (static_cast<const uint8_t*>(w)[row + c / 4] >> (2 * (c % 4))) & 3;
  if (code == 2)
    throw Error(ErrorKind::kBadWeights,
                "codes must be 00, 01 or 11, got 10 at output " + std::to_string(o) + ", tap " +
                    std::to_string(tap) + ", input channel " + std::to_string(c) +
                    ".\n  Pack weights with ternary_ops.ops.codes.pack_codes.");
  return static_cast<int8_t>(code == 3 ? -1 : code);
}

float float_at(const void* w, const WeightShape& s, int64_t o, int64_t tap, int64_t c) {
  return static_cast<const float*>(w)[(o * s.r * s.s + tap) * s.i + c];
}

bool dense_possible(const WeightShape& s, Weights weights) {
  if (s.groups == 1) return true;
  return (weights == Weights::kFloat || s.i % 4 == 0) && (s.o / s.groups) % kBlock == 0;
}

template <class T>
void append(std::vector<uint8_t>& out, const T* data, size_t n) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(data);
  out.insert(out.end(), p, p + n * sizeof(T));
}

// Four weights of one natural cell (channels 4 cell .. 4 cell + 3 of the whole input) that belong
// to the group of output o.
int32_t quad_at(Weights kind, const void* w, const WeightShape& s, int64_t o, int64_t tap,
                int64_t cell) {
  const int64_t first = (o / (s.o / s.groups)) * s.i;
  int32_t quad = 0;
  for (int64_t j = 0; j < 4; ++j) {
    const int64_t c = cell * 4 + j - first;
    if (c < 0 || c >= s.i) continue;
    const uint32_t byte = static_cast<uint8_t>(integer_at(kind, w, s, o, tap, c));
    quad |= static_cast<int32_t>(byte << (8 * j));
  }
  return quad;
}

void append_sparse(std::vector<uint8_t>& blob, Weights kind, const void* w, const WeightShape& s) {
  const int64_t taps = s.r * s.s, per_group = s.groups ? s.o / s.groups : 0;
  std::vector<int64_t> rows{0};
  std::vector<Entry> entries;
  for (int64_t o = 0; o < s.o; ++o) {
    const int64_t first = (o / per_group) * s.i, last = first + s.i;
    const int64_t unit = kind == Weights::kFloat ? 1 : 4;
    for (int64_t cell = first / unit; cell * unit < last; ++cell)
      for (int64_t tap = 0; tap < taps; ++tap) {
        int32_t bits = 0;
        if (kind == Weights::kFloat) {
          const float v = float_at(w, s, o, tap, cell - first);
          std::memcpy(&bits, &v, 4);
          if (v == 0.0f) bits = 0;  // an absent weight: 0 * inf counts as 0
        } else {
          bits = quad_at(kind, w, s, o, tap, cell);
        }
        if (bits) entries.push_back({static_cast<int32_t>(cell * taps + tap), bits});
      }
    rows.push_back(static_cast<int64_t>(entries.size()));
  }
  append(blob, rows.data(), rows.size());
  append(blob, entries.data(), entries.size());
}

// Weight j of the quad at row k = cell * taps + tap of output o, or 0 outside.
int8_t weight_at(Weights kind, const void* w, const WeightShape& s, int64_t o, int64_t k,
                 int64_t j) {
  const int64_t taps = s.r * s.s, c = k / taps * 4 + j;
  return o < s.o && c < s.i ? integer_at(kind, w, s, o, k % taps, c) : int8_t{0};
}

int64_t dense_rows(Weights kind, const WeightShape& s) {
  return (kind == Weights::kFloat ? s.i : quads(s)) * s.r * s.s;
}

int64_t panel_bytes_of(Weights kind, int64_t k) {
  if (kind == Weights::kTernary) return checked_mul((k + kGroup - 1) / kGroup, kGroup * kBlock);
  return checked_mul(k, kBlock * 4);
}

void append_dense(std::vector<uint8_t>& blob, Weights kind, const void* w, const WeightShape& s) {
  const int64_t k = dense_rows(kind, s), taps = s.r * s.s, bytes = panel_bytes_of(kind, k);
  for (int64_t first = 0; first < s.o; first += kBlock) {
    std::vector<uint8_t> panel(static_cast<size_t>(bytes), 0);
    for (int64_t row = 0; row < k; ++row)
      for (int64_t o = 0; o < kBlock; ++o) {
        if (kind == Weights::kFloat) {
          const float v =
              first + o < s.o ? float_at(w, s, first + o, row % taps, row / taps) : 0.0f;
          std::memcpy(&panel[static_cast<size_t>((row * kBlock + o) * 4)], &v, 4);
          continue;
        }
        for (int64_t j = 0; j < 4; ++j) {
          const uint8_t v = static_cast<uint8_t>(weight_at(kind, w, s, first + o, row, j));
          if (kind == Weights::kInt8) {
            panel[static_cast<size_t>((row * kBlock + o) * 4 + j)] = v;
          } else {
            const int64_t in_group = row % kGroup,
                          at = row / kGroup * 64 + (in_group % 2) * 32 + o * 4 + j;
            uint8_t& byte = panel[static_cast<size_t>(at)];
            byte = static_cast<uint8_t>(byte | ((v & 3) << (2 * (in_group / 2))));
          }
        }
      }
    append(blob, panel.data(), panel.size());
  }
}

[[noreturn]] void bad_blob(const char* what) {
  throw Error(ErrorKind::kBadWeights,
              std::string("packed weights are not valid: ") + what +
                  ".\n  Make them with prepack in this version of ternary_ops.");
}

}  // namespace

void check_shape(const WeightShape& s, Weights weights) {
  auto fail = [](const std::string& what) { throw Error(ErrorKind::kUnsupportedShape, what); };
  if (s.o < 0 || s.r < 1 || s.s < 1 || s.i < 0 || s.groups < 1)
    fail("a weight needs O >= 0, R, S >= 1, I >= 0, groups >= 1, got O=" + std::to_string(s.o) +
         " R=" + std::to_string(s.r) + " S=" + std::to_string(s.s) + " I=" + std::to_string(s.i) +
         " groups=" + std::to_string(s.groups) + ".");
  if (s.o % s.groups)
    fail("output channels must divide by groups, got O=" + std::to_string(s.o) +
         " groups=" + std::to_string(s.groups) + ".");
  const int64_t k = checked_mul(checked_mul(s.r, s.s), s.i);
  checked_mul(checked_mul(k, s.groups), 1);
  checked_mul(k, s.o);
  // 255 * max|w| * K must fit int32, and sparse entries number taps x cells with 31 bits.
  const int64_t most = weights == Weights::kInt8 ? 2147483647 / (255 * 128) : 2147483647 / 255;
  if (weights != Weights::kFloat && k > most)
    fail("integer sums of " + std::to_string(k) + " products could overflow int32 (at most " +
         std::to_string(most) + ").\n  Keep this layer in float32.");
  if (checked_mul(checked_mul(s.r, s.s), s.channels() + 4) > 2147483647)
    fail("the filter is too large.");
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
  h.o = s.o, h.r = s.r, h.s = s.s, h.i = s.i, h.groups = s.groups;
  std::vector<uint8_t> blob;
  append(blob, &h, 1);
  std::vector<int32_t> sums(static_cast<size_t>(s.o + s.o % 2),
                            0);  // even, so that what follows stays 8-byte aligned
  if (weights != Weights::kFloat)
    for (int64_t o = 0; o < s.o; ++o)
      for (int64_t tap = 0; tap < s.r * s.s; ++tap)
        for (int64_t c = 0; c < s.i; ++c)
          sums[static_cast<size_t>(o)] += integer_at(weights, w, s, o, tap, c);
  append(blob, sums.data(), sums.size());
  if (sparse)
    append_sparse(blob, weights, w, s);
  else
    append_dense(blob, weights, w, s);
  return blob;
}

std::vector<uint8_t> pack_filter_rows(Weights kind, const void* w, const WeightShape& s,
                                      WeightShape* packed) {
  const int64_t quads_a_row = (s.s * s.i + 3) / 4, unit = kind == Weights::kInt8 ? 4 : 1;
  *packed = {s.o, s.r, quads_a_row, 4, 1};
  std::vector<uint8_t> rows(static_cast<size_t>(s.o * s.r * quads_a_row * unit), 0);
  for (int64_t row = 0; row < s.o * s.r; ++row)
    for (int64_t t = 0; t < s.s * s.i; ++t) {
      const int64_t o = row / s.r, tap = row % s.r * s.s + t / s.i;
      const int8_t value = integer_at(kind, w, s, o, tap, t % s.i);
      uint8_t* const quad = &rows[static_cast<size_t>((row * quads_a_row + t / 4) * unit)];
      if (kind == Weights::kInt8)
        quad[t % 4] = static_cast<uint8_t>(value);
      else
        *quad = static_cast<uint8_t>(*quad | ((value & 3) << (2 * (t % 4))));
    }
  return rows;
}

PackedView view_packed(const uint8_t* blob, int64_t bytes) {
  PackedHeader h;
  if (bytes < static_cast<int64_t>(sizeof(h))) bad_blob("too short");
  std::memcpy(&h, blob, sizeof(h));
  if (std::memcmp(h.magic, kMagic, 8) != 0 || h.version != kVersion) bad_blob("unknown header");
  if (h.weights < 0 || h.weights > 2 || h.sparse < 0 || h.sparse > 1) bad_blob("unknown kind");
  if (reinterpret_cast<uintptr_t>(blob) % 8) bad_blob("not aligned to 8 bytes");
  PackedView v;
  v.shape = {h.o, h.r, h.s, h.i, h.groups};
  v.weights = static_cast<Weights>(h.weights);
  v.sparse = h.sparse;
  check_shape(v.shape, v.weights);
  const int64_t channels = checked_mul(h.i, h.groups);
  v.cells = v.weights == Weights::kFloat ? channels : (channels + 3) / 4;
  int64_t at = sizeof(h);
  auto take = [&](int64_t n) {
    if (n < 0 || n > bytes - at) bad_blob("truncated");
    const uint8_t* p = blob + at;
    at += n;
    return p;
  };
  v.sums = reinterpret_cast<const int32_t*>(take((h.o + h.o % 2) * 4));
  if (v.sparse) {
    v.rows = reinterpret_cast<const int64_t*>(take((h.o + 1) * 8));
    if (v.rows[0] != 0) bad_blob("first row");
    for (int64_t o = 0; o < h.o; ++o)
      if (v.rows[o + 1] < v.rows[o] || v.rows[o + 1] > bytes / 8) bad_blob("row order");
    v.entries = reinterpret_cast<const Entry*>(take(v.rows[h.o] * 8));
  } else {
    if (!dense_possible(v.shape, v.weights)) bad_blob("groups");
    v.k = dense_rows(v.weights, v.shape);
    v.panel_bytes = panel_bytes_of(v.weights, v.k);
    v.panels = take(checked_mul((h.o + kBlock - 1) / kBlock, v.panel_bytes));
  }
  if (at != bytes) bad_blob("size");
  return v;
}

bool prefer_sparse(Weights weights, double occupied, int64_t r, int64_t s) {
  const SparseBelow& below = kernels().sparse_below;
  if (weights == Weights::kFloat) return occupied < below.real;
  if (weights == Weights::kInt8) return occupied < below.int8;
  return occupied < (r * s > 1 ? below.ternary : below.pointwise);
}

double density(Weights weights, const void* w, const WeightShape& s) {
  const int64_t taps = s.o * s.r * s.s;
  int64_t kept = 0, all = 0;
  if (weights == Weights::kFloat) {
    all = taps * s.i;
    for (int64_t k = 0; k < all; ++k) kept += static_cast<const float*>(w)[k] != 0.0f;
  } else {
    all = taps * quads(s);
    for (int64_t k = 0; k < all; ++k) {
      if (weights == Weights::kTernary) {
        kept += static_cast<const uint8_t*>(w)[k] != 0;
      } else {
        int32_t quad;
        std::memcpy(&quad, static_cast<const uint8_t*>(w) + k * 4, 4);
        kept += quad != 0;
      }
    }
  }
  return all ? static_cast<double>(kept) / static_cast<double>(all) : 0.0;
}

}  // namespace tops

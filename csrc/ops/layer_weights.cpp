// SPDX-License-Identifier: Apache-2.0
#include "ops/layer_weights.h"

#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "ops/linear.h"

namespace tops {
namespace {

// Input rows from which a dense linear layer is faster as a convolution of as many pixels than row
// by row: from 1.1 to 2.7 times on AVX2, and to 5 times with dot products of bytes, measured on
// 256 x 512 to 2,048 x 1,024.
constexpr int64_t kPixelRows = 16;

// True if packing filter rows saves more products than copying the image costs.
bool filter_rows_pay(const WeightShape& s, const Window& w) {
  if (s.groups != 1 || w.dil_w != 1 || s.i > 16) return false;
  const int64_t saved = s.r * (s.s * divide_up(s.i, 4) - divide_up(s.s * s.i, 4));
  return saved * s.o >= 64;
}

void check_finite(const ConvWeights& w) {
  for (int64_t o = 0; o < w.shape.o; ++o)
    for (const float* vector : {w.scale, w.bias, w.slope})
      if (vector && !std::isfinite(vector[o]))
        fail(ErrorKind::kBadWeights, "finite scale, bias and slope",
             std::to_string(vector[o]) + " at output channel " + std::to_string(o),
             "Train or load the layer anew.");
}

}  // namespace

LayerWeights::LayerWeights(const ConvWeights& w, Layer layer, const Window* window)
    : shape(w.shape), kind(w.kind), layer_(layer), sparse_(w.sparse) {
  check_shape(w.shape, w.kind);
  check_finite(w);
  density = tops::density(w.kind, w.data, w.shape);
  scale.assign(w.scale, w.scale + w.shape.o);
  bias.assign(static_cast<size_t>(w.shape.o), 0.0f);
  if (w.bias) bias.assign(w.bias, w.bias + w.shape.o);
  if (w.slope) slope.assign(w.slope, w.slope + w.shape.o);
  const bool weight_only = layer == Layer::kWeightOnly;
  if (weight_only || (layer == Layer::kLinear && weight_rows_fit(w.kind, w.shape.i))) {
    const RowCodes codes = w.kind == Weights::kInt8 ? RowCodes::kInt8 : RowCodes::kTwoBit;
    rows_memory_ = weight_only ? pack_weight_rows(codes, w.data, w.shape.o, w.shape.i, 0)
                               : pack_faster_weight_rows(w.kind, w.data, w.shape.o, w.shape.i);
    weight_rows_ = view_weight_rows(rows_memory_.data(), rows_memory_.size());
    return;
  }
  std::call_once(once_, [&] {
    if (!window || !filter_rows_pay(w.shape, *window)) return pack(w.data, w.shape, density);
    row_filter = w.shape.s;
    WeightShape by_rows;
    const std::vector<uint8_t> rows = pack_filter_rows(w.kind, w.data, w.shape, &by_rows);
    pack(rows.data(), by_rows, tops::density(w.kind, rows.data(), by_rows));
  });
}

const PackedView& LayerWeights::view() const {
  std::call_once(once_, [&] { pack(unpack_weight_rows(weight_rows_).data(), shape, density); });
  return view_;
}

bool LayerWeights::packs_sparse(double density, int64_t r, int64_t s) const {
  return sparse_ < 0 ? prefer_sparse(kind, density, r, s) : sparse_ != 0;
}

bool LayerWeights::use_gemv(int64_t m) const {
  if (!weight_rows_.data) return false;
  if (layer_ == Layer::kWeightOnly) return true;
  if (m >= kPixelRows) return false;
  if (!packs_sparse(density, 1, 1)) return true;
  return sparse_ < 0 && gemv_beats_sparse(kind, m, density);
}

void LayerWeights::pack(const void* data, const WeightShape& s, double density) const {
  const bool sparse = packs_sparse(density, s.r, s.s);
  const std::vector<uint8_t> blob = pack_weights(sparse, kind, data, s);
  packed_ = Buffer(static_cast<int64_t>(blob.size()) + kSlackBytes);
  std::memcpy(packed_.data(), blob.data(), blob.size());
  view_ = view_packed(packed_.data(), static_cast<int64_t>(blob.size()));
}

}  // namespace tops

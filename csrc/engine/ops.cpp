// SPDX-License-Identifier: Apache-2.0
#include "engine/ops.h"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "engine/linear.h"
#include "engine/scalar_math.h"
#include "isa/error.h"

namespace tops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

Requantize requantize_of(const TensorRef& y) {
  if (!y.is_float &&
      !(y.scale >= 1e-30f && y.scale <= 1e30f && y.zero_point >= 0 && y.zero_point <= 255))
    throw Error(ErrorKind::kUnsupportedShape,
                "u8 output needs a scale in 1e-30..1e30 and a zero point in 0..255.");
  return {-kInf, kInf, y.is_float ? 0.0f : y.scale, y.zero_point};
}

void check_input(const TensorRef& x, Weights weights) {
  if (x.is_float != (weights == Weights::kFloat))
    throw Error(ErrorKind::kUnsupportedShape,
                "u8 input needs integer weights and float input float ones.");
}

// Up to here a thread keeps the memory of a call for the next one: fresh pages cost more than the
// copies that they hold.
constexpr int64_t kKeptBytes = 64 << 20;

// The parts of one call's memory.
class CallMemory {
 public:
  explicit CallMemory(std::initializer_list<int64_t> sizes) {
    int64_t bytes = 0;
    for (const int64_t size : sizes) {
      starts_.push_back(bytes);
      bytes += divide_up(size, 64) * 64;
    }
    if (kept_.size() < bytes) kept_ = Buffer(bytes);
  }
  ~CallMemory() {
    if (kept_.size() > kKeptBytes) kept_ = Buffer();
  }
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;
  uint8_t* part(size_t i) const { return kept_.data() + starts_[i]; }

 private:
  static thread_local Buffer kept_;
  std::vector<int64_t> starts_;
};
thread_local Buffer CallMemory::kept_;

// known_sums: the packed form's sums of weight rows, or null.
void linear_matvec(const TensorRef& x, int64_t m, int64_t k, Weights weights, const uint8_t* plain,
                   int64_t n, const int32_t* known_sums, const float* scale, const float* bias,
                   const TensorRef& y) {
  const int64_t quads = (k + 3) / 4;
  Buffer rows(m * quads * 4 + kSlackBytes), ones(quads * 4 + kSlackBytes),
      acc_memory(m * n * 4 + n * 4);
  std::memset(rows.data(), 0, static_cast<size_t>(m * quads * 4));
  for (int64_t i = 0; i < m; ++i)
    std::memcpy(rows.data() + i * quads * 4, static_cast<const uint8_t*>(x.data) + i * k,
                static_cast<size_t>(k));
  int32_t* const acc = reinterpret_cast<int32_t*>(acc_memory.data());
  int32_t* const sums = acc + m * n;
  if (known_sums) {
    std::memcpy(sums, known_sums, static_cast<size_t>(n) * 4);
  } else if (x.zero_point) {  // the sum of a row's weights is its product with ones
    std::memset(ones.data(), 1, static_cast<size_t>(quads * 4));
    matvec_rows(weights, ones.data(), 1, k, plain, n, sums);
  } else {
    std::memset(sums, 0, static_cast<size_t>(n) * 4);
  }
  matvec_rows(weights, rows.data(), m, k, plain, n, acc);
  const Epilogue e = make_epilogue(requantize_of(y), {});
  for (int64_t i = 0; i < m; ++i)
    for (int64_t o = 0; o < n; ++o) {
      const float v = affine(static_cast<float>(acc[i * n + o] - x.zero_point * sums[o]), scale[o],
                             bias ? bias[o] : 0.0f);
      if (y.is_float)
        static_cast<float*>(y.data)[i * n + o] = v;
      else
        static_cast<uint8_t*>(y.data)[i * n + o] = to_code(v, e);
    }
}

}  // namespace

void conv2d(const TensorRef& x, int64_t n, int64_t c, int64_t h, int64_t w,
            const PackedView& packed, const float* scale, const float* bias, const Window& window,
            const TensorRef& y) {
  const WeightShape& s = packed.shape;
  check_input(x, packed.weights);
  if (c != s.channels())
    throw Error(ErrorKind::kUnsupportedShape, "the weights need " + std::to_string(s.channels()) +
                                                  " channels, got " + std::to_string(c) + ".");
  const int64_t oh = window_out(h, s.r, window.stride_h, window.pad_h, window.dil_h);
  const int64_t ow = window_out(w, s.s, window.stride_w, window.pad_w, window.dil_w);
  const bool strided = window.stride_h > 1 || window.stride_w > 1;
  const Grid in =
      Grid::make(c, x.is_float, n, h, w, strided ? 0 : std::max(window.pad_h, window.pad_w));
  // The input's halo lets whole vectors be stored where the image keeps its size.
  const Grid out = Grid::make(s.o, y.is_float, n, oh, ow, oh == h && ow == w ? in.halo : 0);
  const ConvPlan plan(packed, scale, bias, x.is_float ? 0 : x.zero_point, in, out, window, {},
                      requantize_of(y));
  const CallMemory memory({in.bytes(), out.bytes(), plan.scratch_bytes()});
  grid_from_nchw(in, x.data, x.is_float ? 0u : u8_cell(x.zero_point), memory.part(0));
  plan.run(memory.part(0), memory.part(1), nullptr, memory.part(2));
  grid_to_nchw(out, memory.part(1), y.data);
}

void linear(const TensorRef& x, int64_t m, int64_t k, Weights weights, const void* plain, int64_t n,
            const PackedView* packed, const float* scale, const float* bias, const TensorRef& y) {
  check_input(x, weights);
  const WeightShape shape{n, 1, 1, k, 1};
  check_shape(shape, weights);
  if (packed && (packed->shape.o != n || packed->shape.i != k || packed->shape.r != 1 ||
                 packed->shape.s != 1 || packed->weights != weights))
    throw Error(ErrorKind::kBadWeights,
                "the packed weights belong to another layer.\n  Make them with prepack.");
  if (!x.is_float && m <= kMatvecRows && matvec_fits(weights, k)) {
    linear_matvec(x, m, k, weights, static_cast<const uint8_t*>(plain), n,
                  packed ? packed->sums : nullptr, scale, bias, y);
    return;
  }
  if (!packed) {
    const std::vector<uint8_t> blob = pack_weights(false, weights, plain, shape);
    const PackedView view = view_packed(blob.data(), static_cast<int64_t>(blob.size()));
    conv2d(x, m, k, 1, 1, view, scale, bias, {}, y);
    return;
  }
  conv2d(x, m, k, 1, 1, *packed, scale, bias, {}, y);
}

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "ops/eager.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/scalar_math.h"
#include "isa/isa.h"
#include "ops/linear.h"

namespace tops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

Requantize requantize_of(const TensorRef& y) {
  if (!y.is_float &&
      !(y.scale >= 1e-30f && y.scale <= 1e30f && y.zero_point >= 0 && y.zero_point <= 255))
    fail(ErrorKind::kUnsupportedShape, "u8 output of scale 1e-30..1e30 and zero point 0..255",
         std::to_string(y.scale) + " and " + std::to_string(y.zero_point),
         "Calibrate the layer's output.");
  return {-kInf, kInf, y.is_float ? 0.0f : y.scale, y.zero_point};
}

void check_input(const TensorRef& x, Weights weights) {
  if (x.is_float != (weights == Weights::kFloat))
    fail(ErrorKind::kUnsupportedShape, "u8 input with integer weights or float with float ones",
         x.is_float ? "float input with integer weights" : "u8 input with float weights",
         "Quantize both or neither.");
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

// The scale of sums: one rounded product each.
const float* scale_by(float x_scale, const float* scale, const Buffer& memory, int64_t n) {
  float* const product = reinterpret_cast<float*>(memory.data());
  for (int64_t o = 0; o < n; ++o) product[o] = scale[o] * x_scale;
  return product;
}

void linear_gemv(const WeightRows& rows, const TensorRef& x, int64_t m, const float* scale,
                 const float* bias, const TensorRef& y) {
  const int64_t n = rows.n;
  Buffer floats(y.is_float ? 0 : m * n * 4);
  float* const values =
      reinterpret_cast<float*>(y.is_float ? static_cast<uint8_t*>(y.data) : floats.data());
  const Epilogue e = make_epilogue(requantize_of(y), {});
  const GemvInput in{x.data, x.is_float, m, rows.k, x.scale, x.zero_point};
  gemv(rows, in, scale, bias, values, [&](int64_t begin, int64_t end) {
    if (y.is_float) return;
    uint8_t* const codes = static_cast<uint8_t*>(y.data);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t o = i * n + begin; o < i * n + end; ++o) codes[o] = to_code(values[o], e);
  });
}

}  // namespace

void conv2d(const TensorRef& x, int64_t n, int64_t c, int64_t h, int64_t w,
            const PackedView& packed, const float* scale, const float* bias, const Window& window,
            const TensorRef& y) {
  const WeightShape& s = packed.shape;
  check_input(x, packed.weights);
  if (c != s.channels())
    fail(ErrorKind::kUnsupportedShape, "an input of " + std::to_string(s.channels()) + " channels",
         std::to_string(c), "Give the input that the weights were made for.");
  const int64_t oh = window_out(h, s.r, window.stride_h, window.pad_h, window.dil_h);
  const int64_t ow = window_out(w, s.s, window.stride_w, window.pad_w, window.dil_w);
  const bool strided = window.stride_h > 1 || window.stride_w > 1;
  const ActivationTensor in = ActivationTensor::make(
      c, x.is_float, n, h, w, strided ? 0 : std::max(window.pad_h, window.pad_w));
  // The input's halo lets whole vectors be stored where the image keeps its size.
  const ActivationTensor out =
      ActivationTensor::make(s.o, y.is_float, n, oh, ow, oh == h && ow == w ? in.halo : 0);
  ConvSpec spec{packed, scale, bias};
  spec.x_zero_point = x.is_float ? 0 : x.zero_point;
  spec.window = window;
  spec.requantize = requantize_of(y);
  const ConvPlan plan(spec, in, out);
  const CallMemory memory({in.bytes(), out.bytes(), plan.scratch_bytes()});
  tensor_from_nchw(in, {0, h}, x.data, x.is_float ? 0u : u8_packet(x.zero_point), memory.part(0));
  plan.run(memory.part(0), memory.part(1), nullptr, memory.part(2));
  tensor_to_nchw(out, {0, oh}, memory.part(1), y.data);
}

namespace {

// Rows of x as pixels of a convolution.
void linear_pixels(const TensorRef& x, int64_t m, const PackedView& view, const float* scale,
                   const float* bias, const TensorRef& y) {
  const int64_t k = view.shape.i;
  if (!x.is_float || view.weights == Weights::kFloat) {
    Buffer effective(view.shape.o * 4);
    return conv2d(x, m, k, 1, 1, view, scale_by(x.scale, scale, effective, view.shape.o), bias, {},
                  y);
  }
  Buffer quantized(m * k);
  kernels().quantize_row(static_cast<const float*>(x.data), m * k, 1.0f / x.scale, x.zero_point,
                         quantized.data());
  linear_pixels({quantized.data(), false, x.scale, x.zero_point}, m, view, scale, bias, y);
}

}  // namespace

Buffer pack_linear(bool sparse, Weights weights, const void* plain, int64_t n, int64_t k) {
  const WeightShape shape{n, 1, 1, k, 1};
  check_shape(shape, weights);
  const bool rows = weight_rows_fit(weights, k);
  std::vector<uint8_t> packed;
  if (sparse || !rows) packed = pack_weights(sparse, weights, plain, shape);
  const int64_t bytes = static_cast<int64_t>(packed.size());
  Buffer blob = rows ? pack_faster_weight_rows(weights, plain, n, k, bytes) : Buffer(bytes);
  if (bytes)
    std::memcpy(blob.data() + blob.size() - bytes, packed.data(), static_cast<size_t>(bytes));
  return blob;
}

void linear(const TensorRef& x, int64_t m, int64_t k, Weights weights, int64_t n,
            const uint8_t* blob, int64_t bytes, const float* scale, const float* bias,
            const TensorRef& y) {
  if (!x.is_float && weights == Weights::kFloat)
    fail(ErrorKind::kUnsupportedShape, "u8 input with integer weights", "float weights",
         "Quantize both or neither.");
  auto check_layer = [&](const WeightShape& held, Weights kind) {
    if (held.o != n || held.i != k || held.r != 1 || held.s != 1 || kind != weights)
      fail(ErrorKind::kBadWeights,
           "packed weights of " + std::to_string(n) + " outputs and " + std::to_string(k) +
               " inputs",
           "those of another layer: " + std::to_string(held.o) + " and " + std::to_string(held.i),
           "Make them with prepack.");
  };
  if (!is_weight_rows(blob, bytes)) {
    const PackedView view = view_packed(blob, bytes);
    check_layer(view.shape, view.weights);
    if (!x.bfloat16) return linear_pixels(x, m, view, scale, bias, y);
    Buffer wide(m * k * 4);
    widen_bfloat16(x.data, m * k, wide.data());
    return linear_pixels({wide.data(), true, x.scale, 0}, m, view, scale, bias, y);
  }
  const WeightRows rows = view_weight_rows(blob, bytes);
  if (x.is_float && weights == Weights::kFloat) {
    check_layer({rows.n, 1, 1, rows.k, 1}, Weights::kFloat);
    if (rows.codes == RowCodes::kBaseThree || !y.is_float)
      fail(ErrorKind::kBadWeights, "two-bit or int8 weight rows and float output for float input",
           y.is_float ? "base three" : "u8 output", "Pack with float_x.");
    return gemv_float(rows, x.data, x.bfloat16, m, scale, bias, static_cast<float*>(y.data));
  }
  check_layer({rows.n, 1, 1, rows.k, 1}, rows.weights());
  // With the sparse form behind them: which of the two is faster depends on m.
  if (!rows.tail_bytes) return linear_gemv(rows, x, m, scale, bias, y);
  const PackedView sparse = view_packed(rows.tail, rows.tail_bytes);
  check_layer(sparse.shape, sparse.weights);
  const int64_t quads = sparse.entry_count() + 2 * sparse.pair_count();
  const double packets = static_cast<double>(std::max<int64_t>(1, rows.n * sparse.packets));
  if (gemv_beats_sparse(weights, m, static_cast<double>(quads) / packets))
    linear_gemv(rows, x, m, scale, bias, y);
  else
    linear_pixels(x, m, sparse, scale, bias, y);
}

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#include "base/scalar_math.h"
#include "base/threads.h"
#include "isa/isa.h"

namespace tops {
namespace {

// Signed inputs are u8 ones less 128, which turns the highest bit around. Returns their sum.
int32_t make_signed(uint8_t* x, int64_t k) {
  for (int64_t i = 0; i < k; ++i) x[i] ^= 0x80;
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += static_cast<int8_t>(x[i]);
  return sum;
}

// One input row as the kernel reads it, `width` bytes; returns the sum of signed inputs.
int32_t prepare_row(const KernelTable& kernel, const GemvInput& x, int64_t i, int64_t k,
                    bool is_signed, uint8_t* to, int64_t width) {
  if (x.is_float)
    kernel.quantize_row(static_cast<const float*>(x.data) + i * x.stride, k, 1.0f / x.scale,
                        x.zero_point, to);
  else
    std::memcpy(to, static_cast<const uint8_t*>(x.data) + i * x.stride, static_cast<size_t>(k));
  std::memset(to + k, 0, static_cast<size_t>(width - k));
  return is_signed ? make_signed(to, k) : 0;
}

// Calls body(begin, end) for ranges of weight rows: enough of them a task to outweigh handing it
// out, and tasks for threads that come late.
template <class Body>
void for_weight_rows(const WeightRows& w, int64_t work, const Body& body) {
  const int64_t least = std::max<int64_t>(16, (1 << 16) / std::max<int64_t>(1, w.row_bytes));
  const int64_t threads = num_threads();
  const int64_t step = threads > 1 ? std::max(least, divide_up(w.n, 4 * threads)) : w.n;
  parallel_for(step ? divide_up(w.n, step) : 0, work,
               [&](int64_t t, int) { body(t * step, std::min(w.n, (t + 1) * step)); });
}

}  // namespace

void gemv(const WeightRows& w, const GemvInput& x, const float* scale, const float* bias, float* y,
          const std::function<void(int64_t, int64_t)>& finish) {
  const KernelTable& kernel =
      kernels();  // the caller's choice: a forced instruction set belongs to its thread
  const int64_t width = w.width(), m = x.m;
  const bool is_signed = w.weights() == Weights::kTernary;
  // An odd number of cache lines: with a power of two, the same place of several rows would share
  // one set of the first-level cache.
  const int64_t stride = (width / kRowBlock | 1) * kRowBlock;
  Buffer rows(m * stride), x_sums(m * 4);
  int32_t* const x_sum = reinterpret_cast<int32_t*>(x_sums.data());
  parallel_for(m, m * width / 64, [&](int64_t i, int) {
    x_sum[i] = prepare_row(kernel, x, i, w.k, is_signed, rows.data() + i * stride, width);
  });
  // Sums lie where the results will.
  const LinearArgs args{
      rows.data(), stride, m, w.data, w.row_bytes, w.codes, reinterpret_cast<int32_t*>(y), w.n};
  for_weight_rows(w, w.n * divide_up(w.k, 64) * m, [&](int64_t begin, int64_t end) {
    kernel.linear(args, begin, end);
    for (int64_t i = 0; i < m; ++i) {
      const LinearEpilogue f{
          w.sums + begin, (is_signed || kernel.signed_input ? 128 : 0) - x.zero_point,
          x_sum[i],       scale + begin,
          x.scale,        bias ? bias + begin : nullptr};
      kernel.linear_epilogue(f, end - begin, y + i * w.n + begin);
    }
    finish(begin, end);
  });
}

void gemv_float(const WeightRows& w, const void* x, bool bfloat16, int64_t m, const float* scale,
                const float* bias, float* y) {
  const FloatLinearKernel halves = bfloat16 ? bfloat16_linear() : nullptr;
  const FloatLinearKernel kernel = halves ? halves : kernels().linear_float;
  const int64_t width = w.width(), given = bfloat16 ? 2 : 4, size = halves ? 2 : 4;
  // Padded to whole blocks of weights, and off the powers of two that share a set of the cache.
  const int64_t stride = width + kRowBlock / size;
  Buffer rows(m * stride * size);
  parallel_for(m, m * width / 16, [&](int64_t i, int) {
    const uint8_t* const from = static_cast<const uint8_t*>(x) + i * w.k * given;
    uint8_t* const to = rows.data() + i * stride * size;
    if (given == size)
      std::memcpy(to, from, static_cast<size_t>(w.k * size));
    else
      widen_bfloat16(from, w.k, to);
    std::memset(to + w.k * size, 0, static_cast<size_t>((stride - w.k) * size));
  });
  const FloatLinearArgs args{rows.data(), stride, m,    w.data, w.row_bytes, width,
                             w.codes,     scale,  bias, y,      w.n};
  for_weight_rows(w, w.n * divide_up(w.k, 16) * m,
                  [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

namespace {

// One of the two codes on made-up weights of a layer's size.
class Trial {
 public:
  Trial(RowCodes codes, int64_t n, int64_t k) : x_(k), zeros_(n * 4), y_(n * 4) {
    const int64_t bytes = row_bytes_of(codes, k);
    rows_ = Buffer(n * bytes);
    std::memset(rows_.data(), 0x55, static_cast<size_t>(rows_.size()));
    std::memset(x_.data(), 1, static_cast<size_t>(k));
    std::memset(zeros_.data(), 0, static_cast<size_t>(n * 4));
    view_.codes = codes;
    view_.n = n, view_.k = k, view_.row_bytes = bytes;
    view_.sums = reinterpret_cast<const int32_t*>(zeros_.data());
    view_.data = rows_.data();
  }
  double seconds() const {
    const auto begin = std::chrono::steady_clock::now();
    gemv(view_, {x_.data(), false, 1, view_.k, 1.0f, 0},
         reinterpret_cast<const float*>(zeros_.data()), nullptr,
         reinterpret_cast<float*>(y_.data()), [](int64_t, int64_t) {});
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  Buffer x_, zeros_, y_, rows_;
  WeightRows view_;
};

// The fastest of a few turns each: what other processes cost hits single turns.
RowCodes measure_codes(int64_t n, int64_t k) {
  constexpr int kTurns = 7;
  const Trial two(RowCodes::kTwoBit, n, k), three(RowCodes::kBaseThree, n, k);
  double best[2] = {1e9, 1e9};
  for (int turn = 0; turn < kTurns; ++turn) {
    best[0] = std::min(best[0], two.seconds());
    best[1] = std::min(best[1], three.seconds());
  }
  return best[1] < best[0] ? RowCodes::kBaseThree : RowCodes::kTwoBit;
}

}  // namespace

RowCodes faster_codes(int64_t n, int64_t k) {
  // A second-level cache, whose reads outpace any decoding; and a size beyond every cache.
  constexpr int64_t kSmall = 512 * 1024, kLarge = 64 * 1024 * 1024;
  const int64_t row_bytes = row_bytes_of(RowCodes::kTwoBit, k), bytes = n * row_bytes;
  if (bytes < kSmall) return RowCodes::kTwoBit;
  using Key = std::tuple<const KernelTable*, int, int>;
  static std::mutex mutex;
  static std::map<Key, RowCodes> known;
  const Key key{&kernels(), num_threads(), 63 - __builtin_clzll(static_cast<uint64_t>(bytes))};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known[key] = measure_codes(std::min(n, kLarge / row_bytes), k);
}

Buffer pack_faster_weight_rows(Weights weights, const void* plain, int64_t n, int64_t k,
                               int64_t tail_bytes) {
  const RowCodes codes = weights == Weights::kInt8 ? RowCodes::kInt8 : faster_codes(n, k);
  return pack_weight_rows(codes, plain, n, k, tail_bytes);
}

namespace {

// Break-even density, measured on AVX2, 1,024 x 2,048, 1 to 128 rows: a partly filled vector of
// pixels costs the sparse loop as much as a full one, so few rows need more empty quads.
struct BreakEven {
  double density, rows;  // limit for many rows; number of rows at which it is half
};

BreakEven break_even(Weights weights) {
  return weights == Weights::kTernary ? BreakEven{0.20, 14} : BreakEven{0.70, 20};
}

}  // namespace

bool gemv_beats_sparse(Weights weights, int64_t m, double density) {
  const BreakEven b = break_even(weights);
  const double rows = static_cast<double>(m);
  return density >= b.density * rows / (rows + b.rows);
}

bool sparse_pays(Weights weights, double density) { return density < break_even(weights).density; }

}  // namespace tops

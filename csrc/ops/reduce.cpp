// SPDX-License-Identifier: Apache-2.0
// Operator reduce: sums, means and extremes along whole axes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

enum class Reduction { kSum, kMean, kMax, kMin };

// Sums in double, as those of many numbers in float32 would lose digits; NaN wins.
template <Reduction kFn>
struct Reducer {
  static constexpr bool kAdds = kFn == Reduction::kSum || kFn == Reduction::kMean;
  static constexpr double kInf = std::numeric_limits<double>::infinity();
  static double start() { return kAdds ? 0.0 : kFn == Reduction::kMax ? -kInf : kInf; }
  static double take(double a, double v) {
    if (kAdds) return a + v;
    const bool wins = kFn == Reduction::kMax ? v > a : v < a;
    return wins || std::isnan(v) ? v : a;
  }
};

// Takes the packets of a channel from `packet` on, one for each of sums.
template <class R>
void take_row(const ActivationTensor& g, const uint8_t* data, int64_t c, int64_t packet,
              std::vector<double>& sums) {
  if (g.is_float) {
    const float* x = reinterpret_cast<const float*>(data) + c * g.channel_stride + packet;
    for (double& sum : sums) sum = R::take(sum, static_cast<double>(*x++));
    return;
  }
  const uint8_t* x = data + (c / 4 * g.channel_stride + packet) * 4 + c % 4;
  for (double& sum : sums) {
    sum = R::take(sum, static_cast<double>(*x));
    x += 4;
  }
}

void put_number(const ActivationTensor& g, uint8_t* data, int64_t c, int64_t packet, double v) {
  if (g.is_float)
    reinterpret_cast<float*>(data)[c * g.channel_stride + packet] = static_cast<float>(v);
  else
    data[(c / 4 * g.channel_stride + packet) * 4 + c % 4] = static_cast<uint8_t>(v);
}

// Attributes: fn; axes, of [N, C, H, W], of tokens [N, C, L].
class Reduce : public OpKernel {
 public:
  Reduce(const Attributes& at, const Types& in) : fn_(function_of(at)) {
    const std::vector<float> axes = at.floats("axes");
    float before = 0.0f;
    for (const float axis : axes) {
      const bool whole = axis == 1.0f || axis == 2.0f || axis == 3.0f;
      if (!whole || axis <= before || axis >= static_cast<float>(in[0].rank))
        bad_node(at.op(), "axes behind the batch, in order", std::to_string(axis));
      before = axis;
      channels_ = channels_ || axis == 1.0f;
      rows_ = rows_ || (axis == 2.0f && in[0].rank == 4);
      columns_ = columns_ || axis == 3.0f || (axis == 2.0f && in[0].rank == 3);
    }
    if (axes.empty()) bad_node(at.op(), "an axis", "none");
    const bool extreme = fn_ == Reduction::kMax || fn_ == Reduction::kMin;
    if (!in[0].is_float && !extreme) bad_node(at.op(), "floats for sums and means", "u8");
    type_ = in[0];
    if (channels_) type_.channels = 1;
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    return {x.n, channels_ ? 1 : x.channels, rows_ ? 1 : x.h, columns_ ? 1 : x.w};
  }

  bool streams(const Shapes&) const override { return !rows_; }

  void run(const NodeRun& node) const override {
    switch (fn_) {
      case Reduction::kSum:
        return run_as<Reduction::kSum>(node);
      case Reduction::kMean:
        return run_as<Reduction::kMean>(node);
      case Reduction::kMax:
        return run_as<Reduction::kMax>(node);
      case Reduction::kMin:
        return run_as<Reduction::kMin>(node);
    }
  }

 private:
  static Reduction function_of(const Attributes& at) {
    const std::string& fn = at.text("fn");
    if (fn == "sum") return Reduction::kSum;
    if (fn == "mean") return Reduction::kMean;
    if (fn == "max") return Reduction::kMax;
    if (fn == "min") return Reduction::kMin;
    bad_node(at.op(), "fn as sum, mean, max or min", "'" + fn + "'");
  }

  template <Reduction kFn>
  void run_as(const NodeRun& node) const;

  Reduction fn_;
  bool channels_ = false, rows_ = false, columns_ = false;
};

template <Reduction kFn>
void Reduce::run_as(const NodeRun& node) const {
  using R = Reducer<kFn>;
  const ActivationTensor &in = node.in(0), &out = node.out();
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const int64_t lines = node.rows.end - node.rows.begin;
  const int64_t parts = channels_ ? 1 : quads_of(out);
  const double count = static_cast<double>((channels_ ? in.channels : 1) * (rows_ ? in.h : 1) *
                                           (columns_ ? in.w : 1));
  // Quads of four channels, since one packet of u8 has as many.
  parallel_for(out.n * parts * lines, 4 * vectors_of(in, {0, rows_ ? in.h : lines}),
               [&](int64_t i, int) {
                 const int64_t n = i / (parts * lines), quad = i / lines % parts;
                 const int64_t row = node.rows.begin + i % lines;
                 std::vector<double> sums(static_cast<size_t>(in.w));
                 const int64_t last = channels_ ? 1 : std::min(quad * 4 + 4, out.channels);
                 for (int64_t c = quad * 4; c < last; ++c) {
                   std::fill(sums.begin(), sums.end(), R::start());
                   for (int64_t k = channels_ ? 0 : c; k < (channels_ ? in.channels : c + 1); ++k)
                     for (int64_t iy = rows_ ? 0 : row; iy < (rows_ ? in.h : row + 1); ++iy)
                       take_row<R>(in, x, k, in.packet(n, iy, 0), sums);
                   if (columns_) {
                     for (size_t p = 1; p < sums.size(); ++p) sums[0] = R::take(sums[0], sums[p]);
                     sums.resize(1);
                   }
                   const int64_t packet = out.packet(n, row, 0);
                   for (int64_t p = 0; p < out.w; ++p) {
                     const double v = sums[static_cast<size_t>(p)];
                     put_number(out, y, c, packet + p, kFn == Reduction::kMean ? v / count : v);
                   }
                   sums.resize(static_cast<size_t>(in.w));
                 }
                 if (!out.is_float)  // bytes of channels that are not there
                   for (int64_t c = last; c % 4; ++c)
                     for (int64_t p = 0; p < out.w; ++p)
                       put_number(out, y, c, out.packet(n, row, p), 0);
               });
  fill_all_halos(out, node.rows, y, halo_value(type_));
}

const RegisterOp<Reduce> kReduce("reduce", 1);

}  // namespace
}  // namespace tops

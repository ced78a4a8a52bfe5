// SPDX-License-Identifier: Apache-2.0
// Operator resize: an image of another size, of nearest pixels, bilinear or bicubic blends.
#include <algorithm>
#include <cmath>
#include <string>

#include "isa/isa.h"
#include "ops/move_rows.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"
#include "tensor/interpolation.h"

namespace tops {
namespace {

enum class Mode { kNearest, kNearestExact, kBilinear, kBicubic };

Mode mode_of(const Attributes& at) {
  const std::string& mode = at.text("mode");
  if (mode == "nearest") return Mode::kNearest;
  if (mode == "nearest-exact") return Mode::kNearestExact;
  if (mode == "bilinear") return Mode::kBilinear;
  if (mode == "bicubic") return Mode::kBicubic;
  bad_node(at.op(), "mode 'nearest', 'nearest-exact', 'bilinear' or 'bicubic'", "'" + mode + "'");
}

class Resize : public OpKernel {
 public:
  Resize(const Attributes& at, const Types& in) : align_(at.flag("align")) {
    for (const ValueType& x : in) need_image(at, x);
    mode_ = mode_of(at);
    const bool blends = mode_ == Mode::kBilinear || mode_ == Mode::kBicubic;
    const bool sized = at.has("size"), zoomed = at.has("zoom");
    if (static_cast<int>(sized) + static_cast<int>(zoomed) + static_cast<int>(in.size() > 1) != 1)
      bad_node(at.op(), "one of size, zoom and an input to be as large as", "none or several");
    if (align_ && (!blends || zoomed))
      bad_node(at.op(), "align with mode 'bilinear' or 'bicubic' and a size",
               blends ? "a zoom" : "another mode");
    if (sized) std::tie(out_h_, out_w_) = at.pair("size", 1);
    if (zoomed) std::tie(zoom_h_, zoom_w_) = at.numbers("zoom");
    if (zoomed && !(zoom_h_ > 0.0f && zoom_w_ > 0.0f))
      bad_node(at.op(), "a zoom of more than 0", std::to_string(std::min(zoom_h_, zoom_w_)));
    type_ = in[0];
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    if (inputs.size() > 1) return {x.n, x.channels, inputs[1].h, inputs[1].w};
    if (out_h_) return {x.n, x.channels, out_h_, out_w_};
    const auto zoomed = [](int64_t size, float zoom) {  // in double, as Python does
      return static_cast<int64_t>(
          std::floor(static_cast<double>(size) * static_cast<double>(zoom)));
    };
    return {x.n, x.channels, zoomed(x.h, zoom_h_), zoomed(x.w, zoom_w_)};
  }

  void run(const NodeRun& node) const override {
    if (mode_ == Mode::kBilinear)
      run_bilinear(node);
    else if (mode_ == Mode::kBicubic)
      run_bicubic(node);
    else
      run_nearest(node);
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

  bool streams(const Shapes&) const override { return true; }
  bool reads(size_t i) const override { return i == 0; }
  Rows rows_read(size_t i, Rows rows, int64_t in_height, int64_t out_height) const override;
  double smooth_end(size_t, double end, int64_t in_height, int64_t out_height) const override {
    return end * steepness(in_height, out_height) + 3;
  }

 private:
  float ratio_h(int64_t in, int64_t out) const { return sampling_ratio(in, out, align_, zoom_h_); }
  float ratio_w(int64_t in, int64_t out) const { return sampling_ratio(in, out, align_, zoom_w_); }
  // Input rows for each output row. Never 0, as the ratio is where one row becomes many with
  // aligned corners: rows far above the output would still ask for the input's first.
  double steepness(int64_t in_height, int64_t out_height) const {
    const double ratio = static_cast<double>(ratio_h(in_height, out_height));
    return std::max(ratio, 1.0 / static_cast<double>(out_height));
  }
  void run_nearest(const NodeRun& node) const;
  void run_bilinear(const NodeRun& node) const;
  void run_bicubic(const NodeRun& node) const;

  Mode mode_ = Mode::kNearest;
  bool align_;
  int64_t out_h_ = 0, out_w_ = 0;        // 0: by zoom, or as large as the second input
  float zoom_h_ = 0.0f, zoom_w_ = 0.0f;  // 0: the sizes decide
};

Rows Resize::rows_read(size_t, Rows rows, int64_t in_height, int64_t out_height) const {
  const float ratio = ratio_h(in_height, out_height);
  const auto row = [&](int64_t y) {
    if (y < 0) {  // as far above the image as it is in the output
      const int64_t above =
          1 + static_cast<int64_t>(static_cast<double>(-y) * steepness(in_height, out_height));
      return Rows{-above, -above + 1};
    }
    y = std::min(y, out_height - 1);
    if (mode_ == Mode::kBicubic) {
      const CubicSample s = cubic_sample(y, in_height, ratio, align_);
      return Rows{s.at[0], s.at[3] + 1};
    }
    if (mode_ != Mode::kBilinear) {
      const int64_t at = nearest(y, in_height, ratio, mode_ == Mode::kNearestExact);
      return Rows{at, at + 1};
    }
    const Sample s = sample(y, in_height, ratio, align_);
    return Rows{s.first, s.second + 1};
  };
  return {row(rows.begin).begin, row(rows.end - 1).end};
}

void Resize::run_nearest(const NodeRun& node) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const float tall = ratio_h(in.h, out.h), wide = ratio_w(in.w, out.w);
  const bool exact = mode_ == Mode::kNearestExact;
  MovedColumns columns(out.w);
  for (int64_t p = 0; p < out.w; ++p)
    columns.column[static_cast<size_t>(p)] = nearest(p, in.w, wide, exact);
  move_rows(node, true, columns, [&](int64_t c, int64_t row) {
    return SourceRow{c, nearest(row, in.h, tall, exact), 0};
  });
}

// Four values by their weights, in this order of roundings.
inline float blend(const float* weight, float a, float b, float c, float d) {
  return weight[0] * a + weight[1] * b + weight[2] * c + weight[3] * d;
}

// One row of packets along its columns: steps from the zero point, or floats.
void blend_columns(const std::vector<CubicSample>& columns, const uint8_t* from, bool is_float,
                   int32_t zero_point, float* row) {
  const float* const floats = reinterpret_cast<const float*>(from);
  for (const CubicSample& s : columns) {
    if (is_float) {
      *row++ = blend(s.weight, floats[s.at[0]], floats[s.at[1]], floats[s.at[2]], floats[s.at[3]]);
      continue;
    }
    for (int64_t j = 0; j < 4; ++j) {
      const auto step = [&](int64_t k) {
        return static_cast<float>(from[s.at[k] * 4 + j] - zero_point);
      };
      *row++ = blend(s.weight, step(0), step(1), step(2), step(3));
    }
  }
}

void Resize::run_bicubic(const NodeRun& node) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const float tall = ratio_h(in.h, out.h), wide = ratio_w(in.w, out.w);
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const int32_t zero_point = type_.zero_point;
  std::vector<CubicSample> columns;
  for (int64_t p = 0; p < out.w; ++p) columns.push_back(cubic_sample(p, in.w, wide, align_));
  const KernelTable& kernel = kernels();
  const int64_t width = out.w * (in.is_float ? 1 : 4);
  parallel_for(out.packets, 16 * vectors_of(out, node.rows), [&](int64_t c, int) {
    Buffer memory(5 * width * 4);
    float* const rows = reinterpret_cast<float*>(memory.data());
    float* const blended = rows + 4 * width;
    for (int64_t n = 0; n < out.n; ++n) {
      // Of the last four source rows, which most output rows share with the next.
      int64_t held[4] = {-1, -1, -1, -1};
      const auto interpolated = [&](int64_t line) -> const float* {
        float* const row = rows + line % 4 * width;
        if (held[line % 4] == line) return row;
        held[line % 4] = line;
        const uint8_t* const from = x + (c * in.channel_stride + in.packet(n, line, 0)) * 4;
        blend_columns(columns, from, in.is_float, zero_point, row);
        return row;
      };
      for (int64_t row = node.rows.begin; row < node.rows.end; ++row) {
        const CubicSample v = cubic_sample(row, in.h, tall, align_);
        const float* lines[4];
        for (int64_t k = 0; k < 4; ++k) lines[k] = interpolated(v.at[k]);
        uint8_t* const to = y + (c * out.channel_stride + out.packet(n, row, 0)) * 4;
        float* const made = in.is_float ? reinterpret_cast<float*>(to) : blended;
        for (int64_t i = 0; i < width; ++i)
          made[i] = blend(v.weight, lines[0][i], lines[1][i], lines[2][i], lines[3][i]);
        if (!in.is_float) kernel.quantize_row(blended, width, 1.0f, zero_point, to);
      }
    }
  });
}

void Resize::run_bilinear(const NodeRun& node) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const float tall = ratio_h(in.h, out.h), wide = ratio_w(in.w, out.w);
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const int32_t zero_point = type_.zero_point;
  const BilinearColumns columns(in.w, 0, out.w, wide, align_);
  const KernelTable& kernel = kernels();
  const int64_t width = out.w * (in.is_float ? 1 : 4);
  parallel_for(out.packets, 4 * vectors_of(out, node.rows), [&](int64_t c, int) {
    Buffer memory(3 * width * 4);
    float* const blended = reinterpret_cast<float*>(memory.data()) + 2 * width;
    for (int64_t n = 0; n < out.n; ++n) {
      // Of the last two source rows, which most output rows share with the next.
      int64_t held[2] = {-1, -1};
      const auto interpolated = [&](int64_t line) -> const float* {
        float* const row = reinterpret_cast<float*>(memory.data()) + line % 2 * width;
        if (held[line % 2] == line) return row;
        held[line % 2] = line;
        const uint8_t* const from = x + (c * in.channel_stride + in.packet(n, line, 0)) * 4;
        if (in.is_float)
          kernel.bilinear_floats(columns.bilinear(), reinterpret_cast<const float*>(from), out.w,
                                 row);
        else
          kernel.bilinear_packets(columns.bilinear(), from, zero_point, out.w, row);
        return row;
      };
      for (int64_t row = node.rows.begin; row < node.rows.end; ++row) {
        const Sample v = sample(row, in.h, tall, align_);
        const float *const above = interpolated(v.first), *const below = interpolated(v.second);
        uint8_t* const to = y + (c * out.channel_stride + out.packet(n, row, 0)) * 4;
        kernel.blend_rows(above, below, v.first_weight, v.second_weight, width,
                          in.is_float ? reinterpret_cast<float*>(to) : blended);
        if (!in.is_float) kernel.quantize_row(blended, width, 1.0f, zero_point, to);
      }
    }
  });
}

const RegisterOp<Resize> kResize("resize", 1, 2);

}  // namespace
}  // namespace tops

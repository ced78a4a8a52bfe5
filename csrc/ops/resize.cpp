// SPDX-License-Identifier: Apache-2.0
// Operator resize: an image of another size, of nearest pixels or bilinear blends.
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

class Resize : public OpKernel {
 public:
  Resize(const Attributes& at, const Types& in) : align_(at.flag("align")) {
    for (const ValueType& x : in) need_image(at, x);
    const std::string& mode = at.text("mode");
    bilinear_ = mode == "bilinear";
    if (!bilinear_ && mode != "nearest")
      bad_node(at.op(), "mode 'bilinear' or 'nearest'", "'" + mode + "'");
    const bool sized = at.has("size"), zoomed = at.has("zoom");
    if (static_cast<int>(sized) + static_cast<int>(zoomed) + static_cast<int>(in.size() > 1) != 1)
      bad_node(at.op(), "one of size, zoom and an input to be as large as", "none or several");
    if (align_ && (!bilinear_ || zoomed))
      bad_node(at.op(), "align with mode 'bilinear' and a size",
               bilinear_ ? "a zoom" : "another mode");
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
    if (bilinear_)
      run_bilinear(node);
    else
      run_nearest(node);
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

  bool streams(const Shapes&) const override { return true; }
  bool reads(size_t i) const override { return i == 0; }
  Rows rows_read(size_t i, Rows rows, int64_t in_height, int64_t out_height) const override;
  double smooth_end(size_t, double end, int64_t in_height, int64_t out_height) const override {
    return end * steepness(in_height, out_height) + 2;
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

  bool bilinear_, align_;
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
    if (!bilinear_) return Rows{nearest(y, in_height, ratio), nearest(y, in_height, ratio) + 1};
    const Sample s = sample(y, in_height, ratio, align_);
    return Rows{s.first, s.second + 1};
  };
  return {row(rows.begin).begin, row(rows.end - 1).end};
}

void Resize::run_nearest(const NodeRun& node) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const float tall = ratio_h(in.h, out.h), wide = ratio_w(in.w, out.w);
  MovedColumns columns(out.w);
  for (int64_t p = 0; p < out.w; ++p)
    columns.column[static_cast<size_t>(p)] = nearest(p, in.w, wide);
  move_rows(node, true, columns,
            [&](int64_t c, int64_t row) { return SourceRow{c, nearest(row, in.h, tall), 0}; });
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

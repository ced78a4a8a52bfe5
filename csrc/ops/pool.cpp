// SPDX-License-Identifier: Apache-2.0
// Operators max_pool2d, avg_pool2d, adaptive_avg_pool2d and adaptive_max_pool2d.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/scalar_math.h"
#include "isa/isa.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

// Pools whose windows lie at equal distances.
class WindowPool : public OpKernel {
 public:
  WindowPool(const Attributes& at, const Types& in) : ceil_(at.flag("ceil")) {
    need_image(at, in[0]);
    std::tie(kernel_h_, kernel_w_) = at.pair("kernel", 1);
    std::tie(window_.stride_h, window_.stride_w) = at.pair("stride", 1);
    std::tie(window_.pad_h, window_.pad_w) = at.pair("padding", 0);
    if (2 * window_.pad_h > kernel_h_ || 2 * window_.pad_w > kernel_w_)
      bad_node(at.op(), "padding of at most half the kernel",
               std::to_string(window_.pad_h) + " and " + std::to_string(window_.pad_w));
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    const Window& w = window_;
    return {x.n, x.channels, window_out(x.h, kernel_h_, w.stride_h, w.pad_h, w.dil_h, ceil_),
            window_out(x.w, kernel_w_, w.stride_w, w.pad_w, w.dil_w, ceil_)};
  }

  bool streams(const Shapes&) const override { return true; }

  Rows rows_read(size_t, Rows rows, int64_t, int64_t) const override {
    return rows_of_windows(window_, kernel_h_, rows);
  }

 protected:
  Window window_;
  int64_t kernel_h_ = 1, kernel_w_ = 1;
  bool ceil_;
};

class MaxPool2d : public WindowPool {
 public:
  MaxPool2d(const Attributes& at, const Types& in) : WindowPool(at, in) {
    std::tie(window_.dil_h, window_.dil_w) = at.pair("dilation", 1);
    type_ = in[0];
  }

  void run(const NodeRun& node) const override;
};

void MaxPool2d::run(const NodeRun& node) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const Window& win = window_;
  const Rows rows = node.rows;
  const bool is_float = type_.is_float;
  const float lowest = -__builtin_inff();
  uint32_t fill = 0;  // the smallest code; for float, minus infinity
  if (is_float) std::memcpy(&fill, &lowest, 4);
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const KernelTable& kernel = kernels();
  const int64_t pitch =
      std::max(win.pad_w + in.w, (out.w - 1) * win.stride_w + (kernel_w_ - 1) * win.dil_w + 1);
  const int64_t count_out = rows.end - rows.begin;
  const int64_t work = vectors_of(out, rows) * win.stride_h * win.stride_w;
  parallel_for(out.packets, work * (kernel_h_ + 1), [&](int64_t c, int) {
    std::vector<const uint8_t*> lines(static_cast<size_t>(kernel_h_));
    Buffer columns(pitch * count_out * 4 + kSlackBytes * win.stride_w);
    fill_packets(columns.data(), fill, pitch * count_out);
    for (int64_t n = 0; n < out.n; ++n) {
      for (int64_t oy = rows.begin; oy < rows.end; ++oy) {
        size_t count = 0;
        for (int64_t i = 0; i < kernel_h_; ++i) {
          const int64_t iy = oy * win.stride_h - win.pad_h + i * win.dil_h;
          if (iy >= 0 && iy < in.h)
            lines[count++] = x + (c * in.channel_stride + in.packet(n, iy, 0)) * 4;
        }
        uint8_t* const row = columns.data() + ((oy - rows.begin) * pitch + win.pad_w) * 4;
        if (count)
          kernel.max_rows(lines.data(), static_cast<int64_t>(count), in.w, is_float, row);
        else
          fill_packets(row, fill, in.w);
      }
      for (int64_t oy = rows.begin; oy < rows.end; ++oy)
        kernel.max_columns(columns.data() + (oy - rows.begin) * pitch * 4, kernel_w_, win.stride_w,
                           win.dil_w, is_float,
                           y + (c * out.channel_stride + out.packet(n, oy, 0)) * 4, out.w);
    }
  });
  fill_all_halos(out, rows, y, halo_value(type_));
}

// One window of an average pool: input rows [y0, y1) x columns [x0, x1), divided by count.
struct PoolWindow {
  int64_t y0, y1, x0, x1, count;
};

// One pixel of four channels; row_at(iy): their packets at the first column of an input row.
template <class Row>
void average_pixel(bool float_out, const ValueType& source, const PoolWindow& win,
                   const Epilogue& e, const Row& row_at, const Packets& to) {
  const int64_t pixels = (win.y1 - win.y0) * (win.x1 - win.x0);
  const bool is_float = source.is_float;
  int64_t sum[4] = {0, 0, 0, 0};
  float fsum[4] = {0, 0, 0, 0};
  for (int64_t iy = win.y0; iy < win.y1; ++iy) {
    const Packets row = row_at(iy);
    for (int64_t ix = win.x0; ix < win.x1; ++ix)
      for (int j = 0; j < 4; ++j) {
        if (!is_float) {
          sum[j] += row.channel[0][ix * 4 + j];
        } else if (row.channel[j]) {
          float v;
          std::memcpy(&v, row.channel[j] + ix * 4, 4);
          fsum[j] += v;
        }
      }
  }
  const float scale = is_float ? 1.0f / static_cast<float>(win.count)
                               : source.scale / static_cast<float>(win.count);
  for (int j = 0; j < 4; ++j) {
    const float acc = is_float ? fsum[j] : static_cast<float>(sum[j] - source.zero_point * pixels);
    const float v = acc * scale;
    if (!float_out) {
      to.channel[0][j] = to_code(v, e);
    } else if (to.channel[j]) {
      const float r = activate(v, e);
      std::memcpy(to.channel[j], &r, 4);
    }
  }
}

// Averages of the windows window_at(oy, ox). row_at_once(win, x, e, y) makes columns `inner` of a
// row of floats, from its first window on.
template <class WindowAt, class RowAtOnce>
void average(const NodeRun& node, const ValueType& type, const Requantize& q,
             const WindowAt& window_at, Rows inner, const RowAtOnce& row_at_once) {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const ValueType& source = node.in_type(0);
  const Epilogue e = make_epilogue(q, {});
  uint8_t *const x = node.x(0), *const y = node.y();
  const Rows rows = node.rows;
  const int64_t work = divide_up(in.h, out.h) * divide_up(in.w, out.w) * vectors_of(out, rows);
  parallel_for(quads_of(out), 16 * work, [&](int64_t quad, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t oy = rows.begin; oy < rows.end; ++oy)
        for (int64_t ox = 0; ox < out.w; ++ox) {
          const PoolWindow win = window_at(oy, ox);
          const Packets to = packets_at(out, y, quad, out.packet(n, oy, ox));
          if (ox == inner.begin && inner.end > inner.begin) {
            const Packets from = packets_at(in, x, quad, in.packet(n, win.y0, 0));
            for (int j = 0; j < 4; ++j)
              if (to.channel[j])
                row_at_once(win, reinterpret_cast<const float*>(from.channel[j]), e,
                            reinterpret_cast<float*>(to.channel[j]));
            ox = inner.end - 1;
            continue;
          }
          average_pixel(
              type.is_float, source, win, e,
              [&](int64_t iy) { return packets_at(in, x, quad, in.packet(n, iy, 0)); }, to);
        }
  });
  fill_all_halos(out, rows, y, halo_value(type));
}

class AvgPool2d : public WindowPool {
 public:
  AvgPool2d(const Attributes& at, const Types& in)
      : WindowPool(at, in),
        requantize_(output_of(at, in[0])),
        divisor_(at.has("divisor") ? at.integer("divisor", 1) : 0),
        include_pad_(at.flag("include_pad")) {
    type_ = with_output(in[0], requantize_);
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor& in = node.in(0);
    const Rows inner = in.is_float ? inner_columns(in, node.out()) : Rows{0, 0};
    average(
        node, type_, requantize_, [&](int64_t oy, int64_t ox) { return window_at(in, oy, ox); },
        inner,
        [&](const PoolWindow& win, const float* x, const Epilogue& e, float* y) {
          average_row(in, inner, win, x, e, y);
        });
  }

 private:
  PoolWindow window_at(const ActivationTensor& in, int64_t oy, int64_t ox) const;
  // Columns of the output whose windows lie inside the image from left to right.
  Rows inner_columns(const ActivationTensor& in, const ActivationTensor& out) const;
  void average_row(const ActivationTensor& in, Rows columns, const PoolWindow& win, const float* x,
                   const Epilogue& e, float* y) const;

  Requantize requantize_;
  int64_t divisor_;  // 0: the window's pixels
  bool include_pad_;
};

PoolWindow AvgPool2d::window_at(const ActivationTensor& in, int64_t oy, int64_t ox) const {
  const Window& w = window_;
  const int64_t ys = oy * w.stride_h - w.pad_h, xs = ox * w.stride_w - w.pad_w;
  const int64_t ye = std::min(ys + kernel_h_, in.h + w.pad_h),
                xe = std::min(xs + kernel_w_, in.w + w.pad_w);
  PoolWindow p{std::max<int64_t>(ys, 0), std::min(ye, in.h), std::max<int64_t>(xs, 0),
               std::min(xe, in.w), 0};
  p.y1 = std::max(p.y0, p.y1);
  p.x1 = std::max(p.x0, p.x1);
  p.count = include_pad_ ? (ye - ys) * (xe - xs) : (p.y1 - p.y0) * (p.x1 - p.x0);
  if (divisor_) p.count = divisor_;
  return p;
}

Rows AvgPool2d::inner_columns(const ActivationTensor& in, const ActivationTensor& out) const {
  const Window& w = window_;
  const int64_t begin = std::min(out.w, divide_up(w.pad_w, w.stride_w));
  const int64_t last = in.w + w.pad_w - kernel_w_;  // where such a window may begin
  const int64_t end = last < 0 ? 0 : std::min(out.w, last / w.stride_w + 1);
  return {begin, std::max(begin, end)};
}

// Averages of many pixels of a row at once; sums in the same order as pixel by pixel.
void AvgPool2d::average_row(const ActivationTensor& in, Rows columns, const PoolWindow& win,
                            const float* x, const Epilogue& e, float* y) const {
  const int64_t step = window_.stride_w, count = columns.end - columns.begin;
  std::fill(y, y + count, 0.0f);
  for (int64_t iy = win.y0; iy < win.y1; ++iy)
    for (int64_t k = 0; k < kernel_w_; ++k) {
      const int64_t ix = columns.begin * step - window_.pad_w + k;
      const float* const from = x + (iy - win.y0) * in.pitch + ix;
      if (step == 1)
        for (int64_t i = 0; i < count; ++i) y[i] += from[i];
      else
        for (int64_t i = 0; i < count; ++i) y[i] += from[i * step];
    }
  const float scale = 1.0f / static_cast<float>(win.count);
  for (int64_t i = 0; i < count; ++i) y[i] = activate(y[i] * scale, e);
}

// Window of an output pixel where windows of almost one size cover the image.
PoolWindow adaptive_window(const ActivationTensor& in, const ActivationTensor& out, int64_t oy,
                           int64_t ox) {
  const int64_t y0 = oy * in.h / out.h, y1 = divide_up((oy + 1) * in.h, out.h);
  const int64_t x0 = ox * in.w / out.w, x1 = divide_up((ox + 1) * in.w, out.w);
  return {y0, y1, x0, x1, (y1 - y0) * (x1 - x0)};
}

class AdaptiveAvgPool2d : public OpKernel {
 public:
  AdaptiveAvgPool2d(const Attributes& at, const Types& in) : requantize_(output_of(at, in[0])) {
    need_image(at, in[0]);
    std::tie(out_h_, out_w_) = at.pair("size", 1);
    type_ = with_output(in[0], requantize_);
  }

  Shape infer(const Shapes& inputs) const override {
    return {inputs[0].n, inputs[0].channels, out_h_, out_w_};
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor &in = node.in(0), &out = node.out();
    average(
        node, type_, requantize_,
        [&](int64_t oy, int64_t ox) { return adaptive_window(in, out, oy, ox); }, {0, 0},
        [](const PoolWindow&, const float*, const Epilogue&, float*) {});
  }

 private:
  Requantize requantize_;
  int64_t out_h_ = 1, out_w_ = 1;
};

class AdaptiveMaxPool2d : public OpKernel {
 public:
  AdaptiveMaxPool2d(const Attributes& at, const Types& in) {
    need_image(at, in[0]);
    std::tie(out_h_, out_w_) = at.pair("size", 1);
    type_ = in[0];
  }

  Shape infer(const Shapes& inputs) const override {
    return {inputs[0].n, inputs[0].channels, out_h_, out_w_};
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor &in = node.in(0), &out = node.out();
    uint8_t *const x = node.x(0), *const y = node.y();
    parallel_for(out.packets, vectors_of(in, {0, in.h}), [&](int64_t c, int) {
      for (int64_t n = 0; n < out.n; ++n)
        for (int64_t oy = 0; oy < out_h_; ++oy)
          for (int64_t ox = 0; ox < out_w_; ++ox) {
            const PoolWindow win = adaptive_window(in, out, oy, ox);
            uint8_t* const to = y + (c * out.channel_stride + out.packet(n, oy, ox)) * 4;
            std::memcpy(to, x + (c * in.channel_stride + in.packet(n, win.y0, win.x0)) * 4, 4);
            for (int64_t iy = win.y0; iy < win.y1; ++iy) {
              const uint8_t* const row = x + (c * in.channel_stride + in.packet(n, iy, 0)) * 4;
              for (int64_t ix = win.x0; ix < win.x1; ++ix) take_larger(row + ix * 4, to);
            }
          }
    });
    fill_all_halos(out, node.rows, y, halo_value(type_));
  }

 private:
  // Of a packet, to another.
  void take_larger(const uint8_t* x, uint8_t* y) const {
    if (!type_.is_float) {
      for (int j = 0; j < 4; ++j) y[j] = std::max(y[j], x[j]);
      return;
    }
    float v, most;
    std::memcpy(&v, x, 4);
    std::memcpy(&most, y, 4);
    if (v > most || std::isnan(v)) std::memcpy(y, x, 4);
  }

  int64_t out_h_ = 1, out_w_ = 1;
};

const RegisterOp<MaxPool2d> kMaxPool2d("max_pool2d", 1);
const RegisterOp<AvgPool2d> kAvgPool2d("avg_pool2d", 1);
const RegisterOp<AdaptiveAvgPool2d> kAdaptiveAvgPool2d("adaptive_avg_pool2d", 1);
const RegisterOp<AdaptiveMaxPool2d> kAdaptiveMaxPool2d("adaptive_max_pool2d", 1);

}  // namespace
}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
// Operators that put values elsewhere and change none: slice, unflatten, flatten, pixel_shuffle,
// pixel_unshuffle, channel_shuffle.
#include <cstring>
#include <string>

#include "isa/isa.h"
#include "ops/move_rows.h"
#include "program/registry.h"
#include "tensor/strided_copy.h"

namespace tops {
namespace {

int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -divide_up(-a, b); }

// Channels [begin, end).
class Slice : public RowwiseOp {
 public:
  Slice(const Attributes& at, const Types& in) : begin_(at.integer("begin", 0)) {
    const int64_t end = at.integer("end", begin_ + 1);
    if (end > in[0].channels)
      bad_node(at.op(), "at least " + std::to_string(end) + " channels",
               std::to_string(in[0].channels));
    type_ = in[0];
    type_.channels = end - begin_;
  }

  void run(const NodeRun& node) const override {
    move_rows(node, begin_ % 4 == 0, MovedColumns(node.out().w),
              [&](int64_t c, int64_t row) { return SourceRow{begin_ + c, row, 0}; });
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

 protected:
  explicit Slice(const ValueType& type) : begin_(0) { type_ = type; }

 private:
  int64_t begin_;
};

// Rows as images of one pixel: a slice of all channels.
class Unflatten : public Slice {
 public:
  Unflatten(const Attributes& at, const Types& in) : Slice(in[0]) {
    if (in[0].rank != 2 || in[0].channels < 1)
      bad_node(at.op(), "rank 2 of a known number of channels",
               "rank " + std::to_string(in[0].rank) + " with " + std::to_string(in[0].channels));
    type_.rank = 4;
  }
};

// Everything of an image, in the order of the caller's array.
class Flatten : public OpKernel {
 public:
  Flatten(const Attributes& at, const Types& in) {
    need_image(at, in[0]);
    type_ = in[0];
    type_.channels = 0;
    type_.rank = 2;
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    return {x.n, checked_mul(x.channels, checked_mul(x.h, x.w)), 1, 1};
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor &in = node.in(0), &out = node.out();
    const int64_t image = in.h * in.w;
    const uint8_t* const x = node.x(0);
    uint8_t* const y = node.y();
    if (in.is_float) {
      const int64_t to = out.channel_stride;
      copy_strided(x + in.packet(0, 0, 0) * 4, y,
                   {{in.n, in.image, 1},
                    {in.channels, in.channel_stride, image * to},
                    {in.h, in.pitch, in.w * to},
                    {in.w, 1, to}});
      return;
    }
    // The last quad may have channels that nothing below writes.
    for (int64_t n = 0; n < out.n; ++n)
      std::memset(y + ((out.packets - 1) * out.channel_stride + n) * 4, 0, 4);
    for (int64_t c = 0; c < in.channels; ++c)
      for (int64_t n = 0; n < in.n; ++n)
        for (int64_t p = 0; p < image; ++p) {
          const int64_t k = c * image + p, packet = in.packet(n, p / in.w, p % in.w);
          y[((k / 4) * out.channel_stride + n) * 4 + k % 4] =
              x[((c / 4) * in.channel_stride + packet) * 4 + c % 4];
        }
  }
};

// Pixels of factor_h x factor_w channels become one channel as many times as large.
class PixelShuffle : public OpKernel {
 public:
  PixelShuffle(const Attributes& at, const Types& in) {
    need_image(at, in[0]);
    std::tie(factor_h_, factor_w_) = at.pair("factor", 1);
    std::tie(crop_h_, crop_w_) = at.pair("crop", 0);
    const int64_t factors = checked_mul(factor_h_, factor_w_);
    if (in[0].channels % factors)
      bad_node(at.op(), "channels that divide by " + std::to_string(factors),
               std::to_string(in[0].channels));
    type_ = in[0];
    type_.channels /= factors;
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    return {x.n, type_.channels, checked_mul(x.h, factor_h_) - crop_h_,
            checked_mul(x.w, factor_w_) - crop_w_};
  }

  void run(const NodeRun& node) const override {
    if (type_.is_float)
      run_floats(node);
    else
      run_codes(node);
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

  bool streams(const Shapes&) const override { return true; }

  Rows rows_read(size_t, Rows rows, int64_t, int64_t) const override {
    return {divide_down(rows.begin, factor_h_), divide_down(rows.end - 1, factor_h_) + 1};
  }

  double smooth_end(size_t, double end, int64_t, int64_t) const override {
    const double f = static_cast<double>(factor_h_);
    return (end + f - 1) / f;
  }

 private:
  void run_codes(const NodeRun& node) const {
    MovedColumns columns(node.out().w);
    for (int64_t p = 0; p < node.out().w; ++p) {
      columns.column[static_cast<size_t>(p)] = p / factor_w_;
      columns.extra[static_cast<size_t>(p)] = p % factor_w_;
    }
    move_rows(node, false, columns, [&](int64_t c, int64_t row) {
      return SourceRow{(c * factor_h_ + row % factor_h_) * factor_w_, row / factor_h_, 0};
    });
  }

  void run_floats(const NodeRun& node) const;

  int64_t factor_h_, factor_w_, crop_h_, crop_w_;
};

void PixelShuffle::run_floats(const NodeRun& node) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const Rows rows = node.rows;
  const int64_t fh = factor_h_, fw = factor_w_, whole = out.w / fw;
  const KernelTable& kernel = kernels();
  parallel_for(out.packets, 2 * vectors_of(out, rows), [&](int64_t c, int) {
    std::vector<const float*> from(static_cast<size_t>(fw));
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t first = (c * fh + row % fh) * fw, packet = in.packet(n, row / fh, 0);
        for (int64_t k = 0; k < fw; ++k)
          from[static_cast<size_t>(k)] =
              reinterpret_cast<const float*>(x + ((first + k) * in.channel_stride + packet) * 4);
        float* const to =
            reinterpret_cast<float*>(y + (c * out.channel_stride + out.packet(n, row, 0)) * 4);
        kernel.interleave(from.data(), fw, whole, to);
        for (int64_t p = whole * fw; p < out.w; ++p)
          to[p] = from[static_cast<size_t>(p % fw)][p / fw];
      }
  });
}

// The inverse: blocks of pixels become channels.
class PixelUnshuffle : public OpKernel {
 public:
  PixelUnshuffle(const Attributes& at, const Types& in) {
    need_image(at, in[0]);
    std::tie(factor_h_, factor_w_) = at.pair("factor", 1);
    type_ = in[0];
    type_.channels = checked_mul(in[0].channels, checked_mul(factor_h_, factor_w_));
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    if (x.h % factor_h_ || x.w % factor_w_)
      bad_size(
          "an image that divides by " + std::to_string(factor_h_) + "x" + std::to_string(factor_w_),
          std::to_string(x.h) + "x" + std::to_string(x.w), "Pad or crop the image.");
    return {x.n, type_.channels, x.h / factor_h_, x.w / factor_w_};
  }

  void run(const NodeRun& node) const override {
    const int64_t fh = factor_h_, fw = factor_w_;
    MovedColumns columns(node.out().w);
    for (int64_t p = 0; p < node.out().w; ++p) columns.column[static_cast<size_t>(p)] = p * fw;
    move_rows(node, false, columns, [&](int64_t c, int64_t row) {
      return SourceRow{c / (fh * fw), row * fh + c / fw % fh, c % fw};
    });
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

  bool streams(const Shapes&) const override { return true; }

  Rows rows_read(size_t, Rows rows, int64_t, int64_t) const override {
    return {rows.begin * factor_h_, rows.end * factor_h_};
  }

  double smooth_end(size_t, double end, int64_t, int64_t) const override {
    return end * static_cast<double>(factor_h_);
  }

 private:
  int64_t factor_h_, factor_w_;
};

// Channel c of `groups` equal groups goes to place c % (channels / groups) * groups + group.
class ChannelShuffle : public OpKernel {
 public:
  ChannelShuffle(const Attributes& at, const Types& in) : groups_(at.integer("groups", 1)) {
    need_image(at, in[0]);
    if (in[0].channels % groups_)
      bad_node(at.op(), "channels that divide by " + std::to_string(groups_),
               std::to_string(in[0].channels));
    type_ = in[0];
  }

  void run(const NodeRun& node) const override {
    const int64_t each = type_.channels / groups_;
    move_rows(node, false, MovedColumns(node.out().w), [&](int64_t c, int64_t row) {
      return SourceRow{c % groups_ * each + c / groups_, row, 0};
    });
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

  bool streams(const Shapes&) const override { return true; }

 private:
  int64_t groups_;
};

const RegisterOp<Slice> kSlice("slice", 1);
const RegisterOp<Unflatten> kUnflatten("unflatten", 1);
const RegisterOp<Flatten> kFlatten("flatten", 1);
const RegisterOp<PixelShuffle> kPixelShuffle("pixel_shuffle", 1);
const RegisterOp<PixelUnshuffle> kPixelUnshuffle("pixel_unshuffle", 1);
const RegisterOp<ChannelShuffle> kChannelShuffle("channel_shuffle", 1);

}  // namespace
}  // namespace tops

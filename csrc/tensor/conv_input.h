// SPDX-License-Identifier: Apache-2.0
// Implicit-GEMM view of a convolution's input: output pixel (n, y, x) has the flat index
// (n * image_rows + y) * pitch + x, and input packet c at tap t lies offset(c, t) packets further,
// whatever the pixel. The input of stride 1 is read where it is; another is first split into
// stride x stride phases, so that consecutive outputs read consecutive packets.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "tensor/tensor.h"

namespace tops {

// pad: above and left; below and right by `more` rows and columns larger.
struct Window {
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1, more_h = 0,
          more_w = 0;
};

// Output size along one axis. Throws kUnsupportedShape where it would be less than 1, or the window
// is not a window.
int64_t window_out(int64_t in, int64_t size, int64_t stride, int64_t pad, int64_t dil,
                   bool ceil = false);

// Input rows that windows of `taps` rows read for rows of the output, image borders ignored.
inline Rows rows_of_windows(const Window& w, int64_t taps, Rows rows) {
  return {rows.begin * w.stride_h - w.pad_h,
          (rows.end - 1) * w.stride_h - w.pad_h + (taps - 1) * w.dil_h + 1};
}

class ConvInput {
 public:
  ConvInput(const ActivationTensor& in, int64_t r, int64_t s, const Window& w, int64_t out_h,
            int64_t out_w);
  // For few channels, whose packets would be partly empty: a filter row of s taps x c channels is
  // one run of s * c bytes of an image row, read as quads regardless of where a pixel ends. Tap (i,
  // j) is quad j of row i (pack_filter_rows makes such weights).
  static ConvInput from_filter_rows(const ActivationTensor& in, int64_t r, int64_t s,
                                    const Window& w, int64_t out_h, int64_t out_w);
  int64_t scratch_bytes() const {
    return split_ ? packets_ * channel_stride_ * 4 + kSlackBytes : 0;
  }
  // Offset in packets of (input packet, tap) from the first packet of flat index 0.
  int64_t offset(int64_t packet, int64_t tap) const {
    return packet * channel_stride_ + tap_[static_cast<size_t>(tap)];
  }
  int64_t pixels() const { return pixels_; }
  int64_t channel_stride() const { return channel_stride_; }
  int64_t pitch() const { return pitch_; }
  int64_t image_rows() const { return image_rows_; }  // from one image to the next
  // Returns the packet of flat index 0; copies into scratch where the view is split, with fill
  // outside the image.
  const uint8_t* prepare(const uint8_t* in, uint8_t* scratch, uint32_t fill) const;
  std::vector<Segment> segments(const ActivationTensor& out) const;
  // One bit per flat index, with 8 bytes to spare.
  std::vector<uint8_t> valid(const ActivationTensor& out) const;

 private:
  ConvInput(const ActivationTensor& in, const Window& w, int64_t out_h, int64_t out_w);
  void check_and_close();
  void copy_phase(const KernelTable& kernel, const uint8_t* in, uint8_t* out, int64_t phase,
                  uint32_t fill) const;
  void copy_row(const uint8_t* in, uint8_t* out, int64_t n, int64_t y, uint32_t fill) const;

  ActivationTensor in_;
  Window window_;
  int64_t out_h_, out_w_, packets_;
  bool split_;
  int64_t base_ = 0, pitch_ = 0, image_rows_ = 0, channel_stride_ = 0, phase_stride_ = 0,
          pixels_ = 0;
  std::vector<int64_t> tap_;
  std::vector<int64_t> phases_;  // split: the phases that some tap needs; filter rows: of rows
  int64_t row_quads_ = 0;        // filter rows: quads of each; else 0
};

}  // namespace tops

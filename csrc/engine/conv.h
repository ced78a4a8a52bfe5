// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "engine/grid.h"
#include "engine/packed.h"
#include "kernels/table.h"

namespace tops {

struct Window {
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1;
};

// Output size along one axis. Throws kUnsupportedShape where it would be less than 1, or the window
// is not a window.
int64_t window_out(int64_t in, int64_t size, int64_t stride, int64_t pad, int64_t dil,
                   bool ceil = false);

// How sums become outputs; y_scale 0 means float output.
struct Requantize {
  float lo, hi, y_scale;
  int32_t y_zero_point;
};

struct Residual {
  bool present = false, is_float = false;
  float scale = 1.0f;
  int32_t zero_point = 0;
};

Epilogue make_epilogue(const Requantize& q, const Residual& r);

// Where the input cells of an output pixel lie: on the producer's own grid, or on a copy split into
// stride x stride phases, so that along a row consecutive outputs always read consecutive cells.
class Domain {
 public:
  Domain(const Grid& in, int64_t r, int64_t s, const Window& w, int64_t out_h, int64_t out_w,
         bool force_split = false);
  int64_t scratch_bytes() const { return split_ ? cells_ * plane_ * 4 + kSlackBytes : 0; }
  // Offset in cells of (input cell, tap) from the first cell of flat index 0.
  int64_t offset(int64_t cell, int64_t tap) const {
    return cell * plane_ + tap_[static_cast<size_t>(tap)];
  }
  int64_t pixels() const { return pixels_; }
  int64_t plane() const { return plane_; }
  int64_t pitch() const { return pitch_; }
  int64_t rows() const { return rows_; }
  // Returns the first cell; copies into scratch where the domain is split, with fill outside the
  // image.
  const uint8_t* prepare(const uint8_t* in, uint8_t* scratch, uint32_t fill) const;
  std::vector<Segment> segments(const Grid& out) const;
  // One bit per flat index, with 8 bytes to spare.
  std::vector<uint8_t> valid(const Grid& out) const;

 private:
  void copy_phase(const KernelTable& kernel, const uint8_t* in, uint8_t* out, int64_t phase,
                  uint32_t fill) const;

  Grid in_;
  Window window_;
  int64_t out_h_, out_w_, cells_;
  bool split_;
  int64_t base_ = 0, pitch_ = 0, rows_ = 0, plane_ = 0, phase_plane_ = 0, pixels_ = 0;
  std::vector<int64_t> tap_;
  std::vector<int64_t> phases_;  // split: the phases that some tap needs
};

// One convolution for one input shape, ready to run. Holds no memory of the tensors; safe to run
// from several threads at once.
class ConvPlan {
 public:
  ConvPlan(const PackedView& packed, const float* scale, const float* bias, int32_t x_zero_point,
           const Grid& in, const Grid& out, const Window& w, const Residual& residual,
           const Requantize& q);
  int64_t scratch_bytes() const { return domain_.scratch_bytes(); }
  void run(const uint8_t* x, uint8_t* y, const uint8_t* residual, uint8_t* scratch) const;

 private:
  void run_dense(const ConvArgs& args) const;
  void run_wide(const ConvArgs& args) const;
  void run_sparse(const ConvArgs& args) const;

  Domain domain_;
  Grid out_;
  PackedView packed_;
  ConvArgs args_{};
  bool wide_possible_ = false;  // dense, with channels in the lanes
  uint32_t fill_ = 0, halo_ = 0;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> rows_;
  std::vector<Entry> entries_;
  std::vector<int32_t> start_;
  std::vector<float> scale_, bias_;
  std::vector<Segment> segments_;
  std::vector<uint8_t> valid_;
};

}  // namespace tops

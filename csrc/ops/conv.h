// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "ops/winograd.h"
#include "tensor/conv_input.h"
#include "weights/depthwise_taps.h"
#include "weights/packed.h"

namespace tops {

// How sums become outputs; y_scale 0 means float output.
struct Requantize {
  float lo, hi, y_scale;
  int32_t y_zero_point;
};

// A value that an output is made with: added to it, or multiplied with its sigmoid.
struct Operand {
  bool present = false, is_float = false;
  float scale = 1.0f;
  int32_t zero_point = 0;
  int64_t plane = 0;  // of its grid; 0: as the output's
};

// Scratch of one thread for expanded weights; grows, never shrinks, ends with the thread.
uint8_t* panel_scratch(int64_t bytes);

Epilogue make_epilogue(const Requantize& q, const Operand& residual, const Operand& gate = {});

// One convolution for one input shape, ready to run. Holds no memory of the tensors; safe to run
// from several threads at once.
class ConvPlan {
 public:
  // slope: [O] of a PReLU at the end, or null. row_filter: 0, or the width of the filter whose rows
  // pack_rows has packed. pairs: of rows of float sums, kOdd: but the first.
  ConvPlan(const PackedView& packed, const float* scale, const float* bias, int32_t x_zero_point,
           const ActivationTensor& in, const ActivationTensor& out, const Window& w,
           const Operand& residual, const Requantize& q, const float* slope = nullptr,
           int64_t row_filter = 0, const Operand& gate = {}, Pairs pairs = Pairs::kNone);
  int64_t scratch_bytes() const { return input_.scratch_bytes(); }
  void run(const uint8_t* x, uint8_t* y, const uint8_t* residual, uint8_t* scratch,
           const uint8_t* gate = nullptr) const;

 private:
  // How many pixels of output, at once, read no more input than a core's own cache holds.
  int64_t cached_pixels() const;
  void run_dense(const ConvArgs& args) const;
  void run_wide(const ConvArgs& args) const;
  void run_sparse(const ConvArgs& args) const;
  void run_blocks(const ConvArgs& args) const;  // weights/block_sparse.cpp
  void run_depthwise(const ConvArgs& args) const;

  ConvInput input_;
  ActivationTensor out_;
  PackedView packed_;
  ConvArgs args_{};
  bool wide_possible_ = false;  // dense, with channels in the lanes
  uint32_t fill_ = 0, halo_ = 0;
  std::vector<int64_t> offsets_;
  std::vector<Entry> entries_;
  std::vector<int32_t> block_offsets_;
  std::vector<PairEntry> pairs_;
  TapGroups taps_;
  RowPairs pairs_of_rows_;
  std::vector<int32_t> start_, signed_start_;  // the latter where inputs are read less 128
  std::vector<float> scale_, bias_, slope_;
  std::vector<Segment> segments_;
  std::vector<uint8_t> valid_;
};

}  // namespace tops

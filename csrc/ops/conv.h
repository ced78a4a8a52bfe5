// SPDX-License-Identifier: Apache-2.0
// A convolution for one input shape: its weights placed on the input, its epilogue, and the kernel
// that runs it (docs/kernels.md, "Convolution loops"). A linear layer off the GEMV path is one too,
// of images of one pixel.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "ops/epilogue.h"
#include "ops/winograd.h"
#include "tensor/conv_input.h"
#include "weights/depthwise_taps.h"
#include "weights/packed.h"

namespace tops {

// A convolution but for the shape of its tensors. The plan keeps what packed points to, and copies
// of scale, bias and slope.
struct ConvSpec {
  const PackedView& packed;
  const float* scale;            // [O] of the sums
  const float* bias = nullptr;   // [O] or null
  const float* slope = nullptr;  // [O] of a PReLU at the end, or null
  int32_t x_zero_point = 0;
  Window window = {};
  Requantize requantize = {};
  Operand residual = {}, gate = {};
  int64_t row_filter = 0;      // or the width of the filter whose rows pack_filter_rows has packed
  Pairs pairs = Pairs::kNone;  // of rows of float sums
};

// Ready to run. Holds no memory of the tensors; safe to run from several threads at once.
class ConvPlan {
 public:
  // Throws kUnsupportedShape where the input holds too many packets, kBadWeights where an entry
  // points outside the filter.
  ConvPlan(const ConvSpec& spec, const ActivationTensor& in, const ActivationTensor& out);
  ConvPlan(const ConvPlan&) = delete;
  ConvPlan& operator=(const ConvPlan&) = delete;

  int64_t scratch_bytes() const { return input_.scratch_bytes(); }
  void run(const uint8_t* x, uint8_t* y, const uint8_t* residual, uint8_t* scratch,
           const uint8_t* gate = nullptr) const;

 private:
  void set_channel_constants(const ConvSpec& spec);
  void place_sparse();
  void place_dense();
  void set_epilogue(const ConvSpec& spec);
  void set_output(const ConvSpec& spec);
  void choose_kernel(const ConvSpec& spec);

  // Number of output pixels whose input fits a core's own cache.
  int64_t cached_pixels() const;
  void run_dense(const ConvArgs& args) const;
  void run_wide(const ConvArgs& args) const;
  void run_sparse(const ConvArgs& args) const;
  void run_blocks(const ConvArgs& args) const;
  void run_depthwise(const ConvArgs& args) const;
  void fill_around(const ConvArgs& args, bool pixels_only) const;

  ConvInput input_;
  ActivationTensor in_, out_;
  PackedView packed_;
  ConvArgs args_{};             // but for the memory of a run
  bool wide_possible_ = false;  // dense, with channels in the lanes
  uint32_t fill_ = 0;           // packets outside the input image
  std::vector<int64_t> offsets_;
  std::vector<Entry> entries_;
  std::vector<int32_t> block_offsets_;
  std::vector<PairEntry> pairs_;
  TapGroups taps_;
  WinogradConv winograd_;
  std::vector<int32_t> start_, signed_start_;  // the latter where inputs are read less 128
  std::vector<float> scale_, bias_, slope_;
  std::vector<Segment> segments_;
  std::vector<uint8_t> valid_;
};

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "ops/conv.h"

#include <algorithm>
#include <cmath>

namespace tops {
namespace {

// True if an output, as a multiple of the output scale, could reach 2**30, which real networks'
// scales exclude.
bool may_pass_cap(const ConvSpec& spec, const std::vector<float>& scale,
                  const std::vector<float>& bias) {
  const Requantize& q = spec.requantize;
  const PackedView& packed = spec.packed;
  if (spec.slope || q.y_scale == 0.0f || packed.weights == Weights::kFloat ||
      spec.residual.is_float || spec.gate.present)
    return true;
  const WeightShape& s = packed.shape;
  const double most = 255.0 * static_cast<double>(s.r * s.s * s.i) *
                      (packed.weights == Weights::kTernary ? 1 : 128);
  double worst = 0;
  for (size_t o = 0; o < scale.size(); ++o)
    worst = std::max(worst, most * static_cast<double>(std::fabs(scale[o])) +
                                static_cast<double>(std::fabs(bias[o])));
  return !((worst + 255.0 * static_cast<double>(std::fabs(spec.residual.scale))) /
               static_cast<double>(q.y_scale) <
           1e9);
}

// Entries that name the packet and tap of a filter, with the offset of that place instead.
template <class E>
std::vector<E> placed(const E* entries, int64_t count, const std::vector<int32_t>& offsets) {
  std::vector<E> list(entries, entries + count);
  for (E& e : list) {
    if (e.offset < 0 || static_cast<size_t>(e.offset) >= offsets.size())
      bad_blob("an entry points outside the filter");
    e.offset = offsets[static_cast<size_t>(e.offset)];
  }
  return list;
}

ConvInput input_of(const ConvSpec& spec, const ActivationTensor& in, const ActivationTensor& out) {
  const WeightShape& s = spec.packed.shape;
  if (spec.row_filter)
    return ConvInput::from_filter_rows(in, s.r, spec.row_filter, spec.window, out.h, out.w);
  return ConvInput(in, s.r, s.s, spec.window, out.h, out.w);
}

}  // namespace

ConvPlan::ConvPlan(const ConvSpec& spec, const ActivationTensor& in, const ActivationTensor& out)
    : input_(input_of(spec, in, out)), in_(in), out_(out), packed_(spec.packed) {
  fill_ = in.is_float ? 0u : u8_packet(spec.x_zero_point);
  args_.pixels = input_.pixels();
  args_.weights = packed_.weights;
  args_.outputs = packed_.shape.o;
  set_channel_constants(spec);
  if (packed_.sparse)
    place_sparse();
  else
    place_dense();
  set_epilogue(spec);
  set_output(spec);
  choose_kernel(spec);
}

void ConvPlan::set_channel_constants(const ConvSpec& spec) {
  const int64_t outputs = packed_.shape.o;
  const size_t padded = static_cast<size_t>(divide_up(outputs, kChannelPad) * kChannelPad);
  scale_.assign(padded, 0.0f);
  bias_.assign(padded, 0.0f);
  start_.assign(padded, 0);
  signed_start_.assign(padded, 0);
  for (int64_t o = 0; o < outputs; ++o) {
    const size_t i = static_cast<size_t>(o);
    scale_[i] = spec.scale[o];
    if (spec.bias) bias_[i] = spec.bias[o];
    start_[i] = -spec.x_zero_point * packed_.sums[o];
    signed_start_[i] = start_[i] + 128 * packed_.sums[o];
  }
  if (!spec.slope) return;
  slope_.assign(spec.slope, spec.slope + outputs);
  slope_.resize(padded, 0.0f);
}

void ConvPlan::place_sparse() {
  const int64_t taps = packed_.shape.r * packed_.shape.s;
  std::vector<int32_t> offsets(static_cast<size_t>(packed_.packets * taps));
  for (int64_t c = 0; c < packed_.packets; ++c)
    for (int64_t t = 0; t < taps; ++t)
      offsets[static_cast<size_t>(c * taps + t)] = static_cast<int32_t>(input_.offset(c, t));
  ConvArgs& a = args_;
  if (packed_.blocks.channels) a.blocks = packed_.blocks.place(offsets, block_offsets_);
  if (packed_.entries) entries_ = placed(packed_.entries, packed_.entry_count(), offsets);
  pairs_ = placed(packed_.pairs, packed_.pair_count(), offsets);
  if (is_depthwise(packed_)) taps_ = make_tap_groups(packed_, offsets);
  a.sparse.row_ptr = packed_.row_ptr;
  a.sparse.overflow_groups = packed_.overflow_groups;
  a.sparse.entries = entries_.data();
  a.pairs.row_ptr = packed_.pair_row_ptr;
  a.pairs.entries = packed_.pairs ? pairs_.data() : nullptr;
  a.pairs.overflow_groups = packed_.pair_overflow_groups;
  a.depthwise.row_ptr = taps_.row_ptr.data();
  a.depthwise.groups = taps_.groups.data();
}

void ConvPlan::place_dense() {
  const WeightShape& s = packed_.shape;
  const int64_t taps = s.r * s.s;
  for (int64_t c = 0; c < (taps ? packed_.k / taps : 0); ++c)
    for (int64_t t = 0; t < taps; ++t) offsets_.push_back(input_.offset(c, t) * 4);
  ConvArgs& a = args_;
  a.dense.offsets = offsets_.data();
  a.dense.k = packed_.k;
  a.dense.panels = packed_.panels;
  a.dense.panel_bytes = packed_.panel_bytes;
  a.dense.group_blocks = s.groups > 1 ? s.o / s.groups / kBlock : divide_up(s.o, kBlock) + 1;
  a.dense.group_stride = (s.groups ? packed_.packets / s.groups : 0) * input_.channel_stride() * 4;
}

void ConvPlan::set_epilogue(const ConvSpec& spec) {
  Epilogue& e = args_.epilogue;
  e = make_epilogue(spec.requantize, spec.residual, spec.gate);
  e.capped = may_pass_cap(spec, scale_, bias_);
  e.scale = scale_.data();
  e.bias = bias_.data();
  e.slope = spec.slope ? slope_.data() : nullptr;
}

void ConvPlan::set_output(const ConvSpec& spec) {
  ConvArgs& a = args_;
  const Requantize& q = spec.requantize;
  a.y.is_float = q.y_scale == 0.0f;
  a.y.halo = a.y.is_float ? 0u : u8_packet(q.y_zero_point);
  a.y.channel_stride = out_.channel_stride * 4;
  a.residual.channel_stride =
      spec.residual.channel_stride ? spec.residual.channel_stride * 4 : a.y.channel_stride;
  a.residual.is_float = spec.residual.is_float;
  a.gate.is_float = spec.gate.is_float;
  a.gate.channel_stride =
      spec.gate.channel_stride ? spec.gate.channel_stride * 4 : a.y.channel_stride;
  // The output packets of flat indices are consecutive too: whole vectors go straight to the
  // output.
  if (out_.pitch == input_.pitch() &&
      (in_.n == 1 || out_.image == input_.image_rows() * input_.pitch())) {
    valid_ = input_.valid(out_);
    a.y.valid = valid_.data();
    a.y.origin = out_.packet(0, 0, 0);
  }
}

void ConvPlan::choose_kernel(const ConvSpec& spec) {
  ConvArgs& a = args_;
  if (spec.pairs != Pairs::kNone && a.y.valid && !spec.row_filter && !input_.scratch_bytes())
    winograd_ = WinogradConv(packed_,
                             {in_.n, out_.h, out_.w, input_.pitch(),
                              input_.image_rows() * input_.pitch(), input_.channel_stride()},
                             spec.pairs);
  wide_possible_ = !packed_.sparse && packed_.weights != Weights::kFloat && !a.y.is_float &&
                   !spec.residual.is_float && !spec.gate.present && packed_.shape.groups == 1;
  if (!a.y.valid || wide_possible_) {
    segments_ = input_.segments(out_);
    a.y.segments = segments_.data();
    a.y.segment_count = static_cast<int64_t>(segments_.size());
  }
}

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "ops/conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/threads.h"
#include "isa/isa.h"

namespace tops {
namespace {

// Of input that is read again for every block of channels: what a second-level cache of 512 KB
// holds beside weights and outputs.
constexpr int64_t kCachedInput = 384 * 1024;

uint8_t code_of(float bound, float inv, int32_t zero_point) {
  const float v = bound * inv;
  if (!(v < 1e6f)) return 255;  // no bound: +inf
  if (v < -1e6f) return 0;
  return static_cast<uint8_t>(std::min(255L, std::max(0L, std::lrintf(v) + zero_point)));
}

// Could any output, as a multiple of the output scale, reach 2**30? Not with a real network's
// scales.
bool may_pass_cap(const PackedView& packed, const std::vector<float>& scale,
                  const std::vector<float>& bias, const Operand& residual, const Operand& gate,
                  const Requantize& q) {
  if (q.y_scale == 0.0f || packed.weights == Weights::kFloat || residual.is_float || gate.present)
    return true;
  const WeightShape& s = packed.shape;
  const double most = 255.0 * static_cast<double>(s.r * s.s * s.i) *
                      (packed.weights == Weights::kTernary ? 1 : 128);
  double worst = 0;
  for (size_t o = 0; o < scale.size(); ++o)
    worst = std::max(worst, most * static_cast<double>(std::fabs(scale[o])) +
                                static_cast<double>(std::fabs(bias[o])));
  return !((worst + 255.0 * static_cast<double>(std::fabs(residual.scale))) /
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

// Lanes that do useful work: of pixels, what the flat domain's halos and its last vector leave; of
// channels, what the last wide block leaves.
bool prefers_wide(const KernelTable& kernel, int64_t outputs, int64_t pixels, int64_t flat) {
  const int64_t lanes = kernel.lanes;
  const double by_pixels =
      static_cast<double>(pixels) / static_cast<double>(divide_up(flat, lanes) * lanes);
  const double by_channels =
      static_cast<double>(outputs) / static_cast<double>(divide_up(outputs, 2 * lanes) * 2 * lanes);
  return by_channels * kernel.wide_speed > by_pixels;
}

}  // namespace

uint8_t* panel_scratch(int64_t bytes) {
  static thread_local Buffer buffer;
  if (buffer.size() < bytes) buffer = Buffer(bytes);
  return buffer.data();
}

Epilogue make_epilogue(const Requantize& q, const Operand& residual, const Operand& gate) {
  Epilogue e{};
  e.lo = q.lo;
  e.hi = q.hi;
  if (q.y_scale != 0.0f) {
    e.inv = 1.0f / q.y_scale;
    e.zero_point = q.y_zero_point;
    e.qlo = code_of(q.lo, e.inv, q.y_zero_point);
    e.qhi = code_of(q.hi, e.inv, q.y_zero_point);
    e.capped = true;
  }
  e.res_scale = residual.scale;
  e.res_zero_point = residual.zero_point;
  e.gate_float = gate.is_float;
  e.gate_scale = gate.scale;
  e.gate_zero_point = gate.zero_point;
  return e;
}

ConvPlan::ConvPlan(const PackedView& packed, const float* scale, const float* bias,
                   int32_t x_zero_point, const ActivationTensor& in, const ActivationTensor& out,
                   const Window& w, const Operand& residual, const Requantize& q,
                   const float* slope, int64_t row_filter, const Operand& gate, Pairs pairs)
    : input_(row_filter ? ConvInput::rows(in, packed.shape.r, row_filter, w, out.h, out.w)
                        : ConvInput(in, packed.shape.r, packed.shape.s, w, out.h, out.w)),
      out_(out),
      packed_(packed) {
  const WeightShape& s = packed.shape;
  const int64_t taps = s.r * s.s;
  const size_t padded = static_cast<size_t>(divide_up(s.o, kChannelPad) * kChannelPad);
  scale_.assign(padded, 0.0f);
  bias_.assign(padded, 0.0f);
  start_.assign(padded, 0);
  signed_start_.assign(padded, 0);
  for (int64_t o = 0; o < s.o; ++o) {
    const size_t i = static_cast<size_t>(o);
    scale_[i] = scale[o];
    if (bias) bias_[i] = bias[o];
    start_[i] = -x_zero_point * packed.sums[o];
    signed_start_[i] = start_[i] + 128 * packed.sums[o];
  }
  if (packed.sparse) {
    std::vector<int32_t> table(static_cast<size_t>(packed.packets * taps));
    for (int64_t c = 0; c < packed.packets; ++c)
      for (int64_t t = 0; t < taps; ++t)
        table[static_cast<size_t>(c * taps + t)] = static_cast<int32_t>(input_.offset(c, t));
    if (packed.blocks.channels) args_.blocks = packed.blocks.place(table, block_offsets_);
    if (packed.entries) entries_ = placed(packed.entries, packed.entry_count(), table);
    pairs_ = placed(packed.pairs, packed.pair_count(), table);
    if (is_depthwise(packed) && q.y_scale != 0.0f && !residual.is_float && !gate.present)
      taps_ = make_tap_groups(packed, table);
  } else {
    for (int64_t c = 0; c < (taps ? packed.k / taps : 0); ++c)
      for (int64_t t = 0; t < taps; ++t) offsets_.push_back(input_.offset(c, t) * 4);
  }
  fill_ = in.is_float ? 0u : u8_cell(x_zero_point);
  halo_ = q.y_scale == 0.0f ? 0u : u8_cell(q.y_zero_point);
  ConvArgs& a = args_;
  a.pixels = input_.pixels();
  a.weights = packed.weights;
  a.offsets = offsets_.data();
  a.k = packed.k;
  a.panels = packed.panels;
  a.panel_bytes = packed.panel_bytes;
  a.group_blocks = s.groups > 1 ? s.o / s.groups / kBlock : divide_up(s.o, kBlock) + 1;
  a.group_stride = (s.groups ? packed.packets / s.groups : 0) * input_.plane() * 4;
  a.rows = packed.rows;
  a.bundles = packed.bundles;
  a.pair_rows = packed.pair_rows;
  a.pairs = packed.pairs ? pairs_.data() : nullptr;
  a.pair_bundles = packed.pair_bundles;
  a.tap_rows = taps_.rows.data();
  a.tap_groups = taps_.groups.data();
  a.entries = entries_.data();
  a.outputs = s.o;
  a.epilogue = make_epilogue(q, residual, gate);
  a.epilogue.capped = slope || may_pass_cap(packed, scale_, bias_, residual, gate, q);
  a.epilogue.scale = scale_.data();
  a.epilogue.bias = bias_.data();
  if (slope) {
    slope_.assign(slope, slope + s.o);
    slope_.resize(padded, 0.0f);
    a.epilogue.slope = slope_.data();
  }
  a.float_out = q.y_scale == 0.0f;
  a.plane = out.plane * 4;
  a.residual_plane = residual.plane ? residual.plane * 4 : a.plane;
  a.residual_float = residual.is_float;
  a.gate_plane = gate.plane ? gate.plane * 4 : a.plane;
  a.halo = halo_;
  // The output packets of flat indices are consecutive too: whole vectors go straight to the
  // output.
  if (out.pitch == input_.pitch() && (in.n == 1 || out.image == input_.rows() * input_.pitch())) {
    valid_ = input_.valid(out);
    a.valid = valid_.data();
    a.origin = out.packet(0, 0, 0);
  }
  if (pairs != Pairs::kNone && a.valid && !row_filter && !input_.scratch_bytes())
    pairs_of_rows_ = RowPairs(packed, in.n, out.h, out.w, input_.pitch(),
                              input_.rows() * input_.pitch(), input_.plane(), pairs == Pairs::kOdd);
  wide_possible_ = !packed.sparse && packed.weights != Weights::kFloat && !a.float_out &&
                   !residual.is_float && !gate.present && s.groups == 1;
  if (!a.valid || wide_possible_) {
    segments_ = input_.segments(out);
    a.segments = segments_.data();
    a.segment_count = static_cast<int64_t>(segments_.size());
  }
}

void ConvPlan::run(const uint8_t* x, uint8_t* y, const uint8_t* residual, uint8_t* scratch,
                   const uint8_t* gate) const {
  if (args_.pixels == 0 || args_.outputs == 0) return;
  ConvArgs a = args_;
  a.x = input_.prepare(x, scratch, fill_);
  a.y = y;
  a.residual = residual;
  a.gate = gate;
  a.epilogue.start = (kernels().signed_input ? signed_start_ : start_).data();
  const bool wide =
      wide_possible_ && prefers_wide(kernels(), a.outputs, out_.n * out_.h * out_.w, a.pixels);
  if (a.blocks.channels)
    run_blocks(a);
  else if (!taps_.rows.empty())
    run_depthwise(a);
  else if (packed_.sparse)
    run_sparse(a);
  else if (pairs_of_rows_)
    pairs_of_rows_.run(a);
  else if (wide)
    run_wide(a);
  else
    run_dense(a);
  if (out_.is_float || wide || pairs_of_rows_ || !a.valid) {
    parallel_for(out_.packets, out_.packets * out_.n * out_.h / 8,
                 [&](int64_t c, int) { fill_halo(out_, {0, out_.h}, y, halo_, c, c + 1); });
    return;
  }
  const int64_t end =
      a.origin + a.pixels;  // between the first and the last pixel the kernel wrote the halo itself
  for (int64_t c = 0; c < out_.packets; ++c) {
    uint8_t* const plane = y + c * out_.plane * 4;
    fill_packets(plane, halo_, a.origin);
    fill_packets(plane + end * 4, halo_, out_.n * out_.image + out_.halo - end);
  }
}

void ConvPlan::run_wide(const ConvArgs& a) const {
  const KernelTable& kernel = kernels();
  const int64_t wide = 2 * kernel.lanes, blocks = divide_up(a.outputs, wide);
  const int64_t wanted = num_threads() > 1 ? 2 * num_threads() : 1;
  const int64_t cached = divide_up(a.pixels, cached_pixels());
  const int64_t chunks = std::min(std::max(divide_up(wanted, blocks), cached), a.segment_count);
  const int64_t scratch = kernel.wide_scratch(a.k);
  parallel_for(blocks * chunks, a.outputs * a.k * a.pixels / 16, [&](int64_t i, int) {
    const int64_t b = i % blocks, c = i / blocks;
    kernel.conv_wide(a, b, b + 1, a.segment_count * c / chunks, a.segment_count * (c + 1) / chunks,
                     panel_scratch(scratch));
  });
}

void ConvPlan::run_dense(const ConvArgs& a) const {
  const KernelTable& kernel = kernels();
  const int64_t blocks = divide_up(a.outputs, kBlock),
                wanted = num_threads() > 1 ? 4 * num_threads() : 1;
  const int64_t step = 3 * kernel.lanes;
  const int64_t parts =
      std::max<int64_t>(1, std::min(divide_up(wanted, blocks), a.pixels / (4 * step)));
  const int64_t most = std::min(divide_up(a.pixels, parts), cached_pixels());
  const int64_t chunk = divide_up(most, step) * step;
  const int64_t chunks = divide_up(a.pixels, chunk);
  const int64_t scratch = a.weights == Weights::kFloat ? 0 : dense_scratch(a.k);
  // All channels of a chunk, then the next: its input stays in the cache.
  parallel_for(blocks * chunks, a.outputs * a.k * a.pixels / 16, [&](int64_t i, int) {
    const int64_t b = i % blocks, first = (i / blocks) * chunk;
    kernel.conv_dense(a, b, b + 1, first, std::min(first + chunk, a.pixels),
                      panel_scratch(scratch));
  });
}

int64_t ConvPlan::cached_pixels() const {
  const WeightShape& s = packed_.shape;
  const int64_t pixel = std::max<int64_t>(1, packed_.packets / std::max<int64_t>(1, s.groups)) * 4;
  const int64_t rows = kCachedInput / pixel - (s.r - 1) * input_.pitch();
  return std::max({rows, kCachedInput / (pixel * s.r), int64_t{256}});
}

void ConvPlan::run_sparse(const ConvArgs& a) const {
  const KernelTable& kernel = kernels();
  const int64_t quads = divide_up(a.outputs, 4), step = kernel.sparse_vectors * kernel.lanes;
  const int64_t wanted = num_threads() > 1 ? 3 * num_threads() : 1;
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, a.pixels / (2 * step)));
  const int64_t chunk = divide_up(divide_up(a.pixels, parts), step) * step;
  const int64_t chunks = divide_up(a.pixels, chunk);
  const int64_t ranges = std::min(quads, divide_up(wanted, chunks));
  parallel_for(chunks * ranges,
               (packed_.entry_count() + packed_.pair_count()) * (a.pixels / 16 + 1),
               [&](int64_t i, int) {
                 const int64_t range = i % ranges, first = (i / ranges) * chunk;
                 kernel.conv_sparse(a, quads * range / ranges, quads * (range + 1) / ranges, first,
                                    std::min(first + chunk, a.pixels));
               });
}

void ConvPlan::run_depthwise(const ConvArgs& a) const {
  const KernelTable& kernel = kernels();
  parallel_for(out_.packets, static_cast<int64_t>(taps_.groups.size()) * (a.pixels / 4 + 1),
               [&](int64_t c, int) { kernel.conv_depthwise(a, c, c + 1, 0, a.pixels); });
}

}  // namespace tops

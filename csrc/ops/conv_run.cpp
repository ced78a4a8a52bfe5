// SPDX-License-Identifier: Apache-2.0
// Splitting a convolution over threads and caches: by outputs only, so that no split changes a
// result.
#include <algorithm>

#include "base/threads.h"
#include "isa/isa.h"
#include "ops/conv.h"
#include "tensor/scratch.h"

namespace tops {
namespace {

// Of input that is read again for every block of channels: what a second-level cache of 512 KB
// holds beside weights and outputs.
constexpr int64_t kCachedInput = 384 * 1024;

// True if lanes are better used by channels than by pixels: pixels lose lanes to the halos of the
// flat index and its last vector, channels to the last wide block.
bool prefers_wide(const KernelTable& kernel, int64_t outputs, int64_t pixels, int64_t flat) {
  const int64_t lanes = kernel.lanes;
  const double by_pixels =
      static_cast<double>(pixels) / static_cast<double>(divide_up(flat, lanes) * lanes);
  const double by_channels =
      static_cast<double>(outputs) / static_cast<double>(divide_up(outputs, 2 * lanes) * 2 * lanes);
  return by_channels * kernel.wide_speed > by_pixels;
}

// Calls body(begin, end, first, last) for units [begin, end) of output channels and flat pixels
// [first, last): split over pixels as far as every thread gets a few steps of them, then over
// units.
template <class Body>
void for_channels_and_pixels(int64_t units, int64_t pixels, int64_t step, int64_t work,
                             const Body& body) {
  const int64_t wanted = num_threads() > 1 ? 3 * num_threads() : 1;
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, pixels / (2 * step)));
  const int64_t chunk = divide_up(divide_up(pixels, parts), step) * step;
  const int64_t chunks = divide_up(pixels, chunk);
  const int64_t ranges = std::min(units, divide_up(wanted, chunks));
  parallel_for(chunks * ranges, work, [&](int64_t i, int) {
    const int64_t range = i % ranges, first = (i / ranges) * chunk;
    body(units * range / ranges, units * (range + 1) / ranges, first,
         std::min(first + chunk, pixels));
  });
}

}  // namespace

void ConvPlan::run(const uint8_t* x, uint8_t* y, const uint8_t* residual, uint8_t* scratch,
                   const uint8_t* gate) const {
  if (args_.pixels == 0 || args_.outputs == 0) return;
  ConvArgs a = args_;
  a.x = input_.prepare(x, scratch, fill_);
  a.y.data = y;
  a.residual.data = residual;
  a.gate.data = gate;
  a.epilogue.start = (kernels().signed_input ? signed_start_ : start_).data();
  const bool wide =
      wide_possible_ && prefers_wide(kernels(), a.outputs, out_.n * out_.h * out_.w, a.pixels);
  if (a.blocks.channels)
    run_blocks(a);
  else if (!taps_.row_ptr.empty())
    run_depthwise(a);
  else if (packed_.sparse)
    run_sparse(a);
  else if (winograd_)
    winograd_.run(a);
  else if (wide)
    run_wide(a);
  else
    run_dense(a);
  fill_around(a, wide || winograd_);
}

// The packets of y beside the image. pixels_only: the kernel wrote nothing but pixels.
void ConvPlan::fill_around(const ConvArgs& a, bool pixels_only) const {
  if (out_.is_float || pixels_only || !a.y.valid) {
    parallel_for(out_.packets, out_.packets * out_.n * out_.h / 8, [&](int64_t c, int) {
      fill_halo(out_, {0, out_.h}, a.y.data, a.y.halo, c, c + 1);
    });
    return;
  }
  // Between the first and the last pixel the kernel wrote the halo itself.
  const int64_t end = a.y.origin + a.pixels;
  for (int64_t c = 0; c < out_.packets; ++c) {
    uint8_t* const channel = a.y.data + c * out_.channel_stride * 4;
    fill_packets(channel, a.y.halo, a.y.origin);
    fill_packets(channel + end * 4, a.y.halo, out_.n * out_.image + out_.halo - end);
  }
}

void ConvPlan::run_wide(const ConvArgs& a) const {
  const KernelTable& kernel = kernels();
  const int64_t wide = 2 * kernel.lanes, blocks = divide_up(a.outputs, wide);
  const int64_t wanted = num_threads() > 1 ? 2 * num_threads() : 1;
  const int64_t cached = divide_up(a.pixels, cached_pixels());
  const int64_t chunks = std::min(std::max(divide_up(wanted, blocks), cached), a.y.segment_count);
  const int64_t scratch = kernel.wide_scratch(a.dense.k);
  parallel_for(blocks * chunks, a.outputs * a.dense.k * a.pixels / 16, [&](int64_t i, int) {
    const int64_t b = i % blocks, c = i / blocks;
    kernel.conv_wide(a, b, b + 1, a.y.segment_count * c / chunks,
                     a.y.segment_count * (c + 1) / chunks, thread_scratch(scratch));
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
  const int64_t scratch = a.weights == Weights::kFloat ? 0 : dense_scratch(a.dense.k);
  // All channels of a chunk, then the next: its input stays in the cache.
  parallel_for(blocks * chunks, a.outputs * a.dense.k * a.pixels / 16, [&](int64_t i, int) {
    const int64_t b = i % blocks, first = (i / blocks) * chunk;
    kernel.conv_dense(a, b, b + 1, first, std::min(first + chunk, a.pixels),
                      thread_scratch(scratch));
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
  const int64_t work = (packed_.entry_count() + packed_.pair_count()) * (a.pixels / 16 + 1);
  for_channels_and_pixels(divide_up(a.outputs, 4), a.pixels, kernel.sparse_vectors * kernel.lanes,
                          work, [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
                            kernel.conv_sparse(a, begin, end, first, last);
                          });
}

void ConvPlan::run_blocks(const ConvArgs& a) const {
  const KernelTable& kernel = kernels();
  const BlockView& blocks = packed_.blocks;
  const int64_t work = blocks.count * blocks.channels * (a.pixels / 16 + 1);
  const int64_t scratch =
      blocks.values == Values::kFloat32 ? 0 : blocks.most_values(a.outputs) * 4 + kSlackBytes;
  for_channels_and_pixels(divide_up(a.outputs, kBlock), a.pixels, 8 * kernel.lanes, work,
                          [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
                            kernel.conv_blocks(a, begin, end, first, last, thread_scratch(scratch));
                          });
}

void ConvPlan::run_depthwise(const ConvArgs& a) const {
  const KernelTable& kernel = kernels();
  parallel_for(divide_up(a.outputs, 4),
               static_cast<int64_t>(taps_.groups.size()) * (a.pixels / 4 + 1),
               [&](int64_t c, int) { kernel.conv_depthwise(a, c, c + 1, 0, a.pixels); });
}

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
#include "tensor/conv_input.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/threads.h"
#include "isa/isa.h"

namespace tops {
namespace {

// Packets of the widest vector.
constexpr int64_t kRowPackets = 16;

}  // namespace

int64_t window_out(int64_t in, int64_t size, int64_t stride, int64_t pad, int64_t dil, bool ceil) {
  if (size < 1 || stride < 1 || pad < 0 || dil < 1 ||
      std::max({size, stride, pad, dil}) > (int64_t{1} << 30))
    fail(ErrorKind::kUnsupportedShape,
         "a window of size, stride and dilation >= 1 and padding >= 0, all up to 2**30",
         "size " + std::to_string(size) + ", stride " + std::to_string(stride) + ", padding " +
             std::to_string(pad) + ", dilation " + std::to_string(dil),
         "Correct the layer's arguments.");
  const int64_t room = checked_mul(in, 1) + 2 * pad - (checked_mul(dil, size - 1) + 1);
  // Rounded up, a window that is too large for the image still gives one output while its overhang
  // is less than a stride.
  int64_t out = 0;
  if (room >= 0)
    out = (ceil ? divide_up(room, stride) : room / stride) + 1;
  else if (ceil && -room < stride)
    out = 1;
  if (ceil && out > 0 && (out - 1) * stride >= in + pad)
    --out;  // a window must start inside the image or its left padding
  if (in < 1 || out < 1)
    fail(ErrorKind::kUnsupportedShape,
         "an image and padding as large as the window, " + std::to_string(dil * (size - 1) + 1) +
             " pixels",
         std::to_string(in) + " with " + std::to_string(pad) + " of padding on each side",
         "Use a larger image or more padding.");
  return out;
}

ConvInput::ConvInput(const ActivationTensor& in, const Window& w, int64_t out_h, int64_t out_w)
    : in_(in), window_(w), out_h_(out_h), out_w_(out_w), packets_(in.packets) {}

ConvInput::ConvInput(const ActivationTensor& in, int64_t r, int64_t s, const Window& w,
                     int64_t out_h, int64_t out_w)
    : ConvInput(in, w, out_h, out_w) {
  split_ = w.stride_h > 1 || w.stride_w > 1 || w.pad_h + w.more_h > in.margin ||
           w.pad_w + w.more_w > in.halo || out_w > in.pitch;
  std::vector<int64_t> slot(static_cast<size_t>(w.stride_h * w.stride_w), -1);
  if (split_) {
    pitch_ = out_w + (s - 1) * w.dil_w / w.stride_w;
    image_rows_ = out_h + (r - 1) * w.dil_h / w.stride_h;
    phase_stride_ = (divide_up(checked_mul(checked_mul(in.n, image_rows_), pitch_), 16) | 1) * 16;
  } else {
    pitch_ = in.pitch;
    image_rows_ = in.h + 2 * in.margin;
    base_ = (in.margin - w.pad_h) * in.pitch + in.halo - w.pad_w;
    channel_stride_ = in.channel_stride;
  }
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = 0; j < s; ++j) {
      const int64_t y = i * w.dil_h, x = j * w.dil_w;
      int64_t at = (y / w.stride_h) * pitch_ + x / w.stride_w;
      if (split_) {
        const int64_t phase = (y % w.stride_h) * w.stride_w + x % w.stride_w;
        int64_t& index = slot[static_cast<size_t>(phase)];
        if (index < 0) {
          index = static_cast<int64_t>(phases_.size());
          phases_.push_back(phase);
        }
        at += index * phase_stride_;
      }
      tap_.push_back(at);
    }
  check_and_close();
}

// Each quad of a filter row has its own array, so that output pixel x reads packet x of it: rows of
// whole vectors make every load an aligned one.
ConvInput ConvInput::from_filter_rows(const ActivationTensor& in, int64_t r, int64_t s,
                                      const Window& w, int64_t out_h, int64_t out_w) {
  ConvInput d(in, w, out_h, out_w);
  d.split_ = true;
  d.packets_ = 1;
  d.row_quads_ = divide_up(s * in.channels, 4);
  d.pitch_ = divide_up(out_w, kRowPackets) * kRowPackets;
  d.image_rows_ = out_h + (r - 1) * w.dil_h / w.stride_h;
  d.phase_stride_ =
      (divide_up(checked_mul(checked_mul(in.n, d.image_rows_), d.pitch_), 16) | 1) * 16;
  std::vector<int64_t> slot(static_cast<size_t>(w.stride_h), -1);
  for (int64_t i = 0; i < r; ++i) {
    const int64_t y = i * w.dil_h;
    int64_t& index = slot[static_cast<size_t>(y % w.stride_h)];
    if (index < 0) {
      index = static_cast<int64_t>(d.phases_.size());
      d.phases_.push_back(y % w.stride_h);
    }
    for (int64_t q = 0; q < d.row_quads_; ++q)
      d.tap_.push_back((index * d.row_quads_ + q) * d.phase_stride_ + y / w.stride_h * d.pitch_);
  }
  d.check_and_close();
  return d;
}

void ConvInput::check_and_close() {
  const int64_t planes = std::max<int64_t>(1, row_quads_);
  if (split_)
    channel_stride_ =
        checked_mul(phase_stride_, checked_mul(planes, static_cast<int64_t>(phases_.size())));
  if (checked_mul(packets_, channel_stride_) + channel_stride_ >
      std::numeric_limits<int32_t>::max())
    fail(ErrorKind::kUnsupportedShape, "a tensor of less than 2**31 packets",
         std::to_string(packets_ * channel_stride_), "Split the batch or the image.");
  pixels_ = in_.n ? ((in_.n - 1) * image_rows_ + out_h_ - 1) * pitch_ + out_w_ : 0;
}

void ConvInput::copy_phase(const KernelTable& kernel, const uint8_t* in, uint8_t* out,
                           int64_t phase, uint32_t fill) const {
  const int64_t a = phase / window_.stride_w, b = phase % window_.stride_w;
  // Columns [first, last) of a phase row lie inside the image.
  const int64_t first = std::min(
      pitch_,
      std::max<int64_t>(0, divide_up(std::max<int64_t>(0, window_.pad_w - b), window_.stride_w)));
  const int64_t reach = in_.w + window_.pad_w - b;
  const int64_t last =
      std::max(first, std::min(pitch_, reach > 0 ? divide_up(reach, window_.stride_w) : 0));
  for (int64_t n = 0; n < in_.n; ++n)
    for (int64_t i = 0; i < image_rows_; ++i) {
      uint8_t* const row = out + (n * image_rows_ + i) * pitch_ * 4;
      const int64_t y = i * window_.stride_h + a - window_.pad_h;
      if (y < 0 || y >= in_.h) {
        fill_packets(row, fill, pitch_);
        continue;
      }
      fill_packets(row, fill, first);
      if (last > first)
        kernel.gather(in + in_.packet(n, y, first * window_.stride_w + b - window_.pad_w) * 4,
                      window_.stride_w, last - first, row + first * 4);
      fill_packets(row + last * 4, fill, pitch_ - last);
    }
}

// Row y of image n (outside: fill) as a stream of bytes from the left padding on, and from it one
// row of each array, which begins at out.
void ConvInput::copy_row(const uint8_t* in, uint8_t* out, int64_t n, int64_t y,
                         uint32_t fill) const {
  const int64_t c = in_.channels, step = window_.stride_w * c, left = window_.pad_w * c;
  if (y < 0 || y >= in_.h) {
    for (int64_t q = 0; q < row_quads_; ++q)
      fill_packets(out + q * phase_stride_ * 4, fill, pitch_);
    return;
  }
  static thread_local std::vector<uint8_t> stream;
  const int64_t wanted = (pitch_ - 1) * step + 4 * row_quads_;
  stream.resize(static_cast<size_t>(std::max(wanted, left + in_.w * c) + 4));
  std::memset(stream.data(), static_cast<int>(fill & 0xff), static_cast<size_t>(left));
  uint8_t* to = stream.data() + left;
  const uint8_t* const row = in + in_.packet(n, y, 0) * 4;
  // Whole packets are copied; what lies beyond the channels is written over by the next pixel.
  for (int64_t x = 0; x < in_.w; ++x, to += c)
    for (int64_t packet = 0; packet < in_.packets; ++packet)
      std::memcpy(to + 4 * packet, row + (packet * in_.channel_stride + x) * 4, 4);
  std::memset(to, static_cast<int>(fill & 0xff),
              static_cast<size_t>(stream.data() + stream.size() - to));
  for (int64_t q = 0; q < row_quads_; ++q) {
    const uint8_t* from = stream.data() + 4 * q;
    uint8_t* const packets = out + q * phase_stride_ * 4;
    for (int64_t x = 0; x < pitch_; ++x, from += step) std::memcpy(packets + x * 4, from, 4);
  }
}

const uint8_t* ConvInput::prepare(const uint8_t* in, uint8_t* scratch, uint32_t fill) const {
  if (!split_) return in + base_ * 4;
  const int64_t count = static_cast<int64_t>(phases_.size());
  if (row_quads_) {
    parallel_for(in_.n * image_rows_, channel_stride_, [&](int64_t i, int) {
      for (int64_t p = 0; p < count; ++p)
        copy_row(
            in, scratch + (p * row_quads_ * phase_stride_ + i * pitch_) * 4, i / image_rows_,
            i % image_rows_ * window_.stride_h + phases_[static_cast<size_t>(p)] - window_.pad_h,
            fill);
    });
    return scratch;
  }
  const KernelTable& kernel =
      kernels();  // the caller's choice: a forced instruction set belongs to its thread
  parallel_for(packets_ * count, packets_ * channel_stride_, [&](int64_t i, int) {
    copy_phase(kernel, in + (i / count) * in_.channel_stride * 4, scratch + i * phase_stride_ * 4,
               phases_[static_cast<size_t>(i % count)], fill);
  });
  return scratch;
}

std::vector<Segment> ConvInput::segments(const ActivationTensor& out) const {
  std::vector<Segment> list;
  for (int64_t n = 0; n < in_.n; ++n)
    for (int64_t y = 0; y < out_h_; ++y) {
      const Segment s{(n * image_rows_ + y) * pitch_, out_w_, out.packet(n, y, 0)};
      if (!list.empty() && list.back().flat + list.back().length == s.flat &&
          list.back().packet + list.back().length == s.packet)
        list.back().length += s.length;
      else
        list.push_back(s);
    }
  return list;
}

std::vector<uint8_t> ConvInput::valid(const ActivationTensor& out) const {
  std::vector<uint8_t> bits(static_cast<size_t>(pixels_ / 8 + 16), 0);
  for (const Segment& s : segments(out))
    for (int64_t p = s.flat; p < s.flat + s.length; ++p)
      bits[static_cast<size_t>(p / 8)] =
          static_cast<uint8_t>(bits[static_cast<size_t>(p / 8)] | (1u << (p % 8)));
  return bits;
}

}  // namespace tops

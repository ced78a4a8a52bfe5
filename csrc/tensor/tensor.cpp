// SPDX-License-Identifier: Apache-2.0
#include "tensor/tensor.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "base/error.h"
#include "base/threads.h"

namespace tops {

int64_t checked_mul(int64_t a, int64_t b) {
  int64_t r;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &r) || r > (int64_t{1} << 46))
    fail(ErrorKind::kUnsupportedShape, "a tensor of at most 2**46 elements",
         std::to_string(a) + " x " + std::to_string(b), "Split the batch or the image.");
  return r;
}

ActivationTensor ActivationTensor::make(int64_t channels, bool is_float, int64_t n, int64_t h,
                                        int64_t w, int64_t halo) {
  ActivationTensor g;
  g.channels = channels;
  g.is_float = is_float;
  g.packets = is_float ? channels : (channels + 3) / 4;
  g.n = n;
  g.h = h;
  g.w = w;
  g.halo = g.margin = halo;
  g.pitch = w + halo;
  g.image = checked_mul(h + 2 * halo, g.pitch);
  g.set_channel_stride(checked_mul(n, g.image) + halo);
  return g;
}

void ActivationTensor::set_channel_stride(int64_t used) {
  channel_stride = used;
  if (h * w > 1 || halo > 0 || (is_float && n > 16))
    channel_stride = (divide_up(used, 16) | 1) * 16;
}

void ActivationTensor::keep(int64_t rows, int64_t margin_rows) {
  margin = margin_rows;
  image = checked_mul(h + 2 * margin, pitch);
  set_channel_stride(checked_mul(rows, pitch) + halo);
}

ActivationTensor ActivationTensor::strip(int64_t rows) const {
  ActivationTensor g = *this;
  g.h = rows;
  g.margin = 0;
  g.image = rows * pitch;
  return g;
}

Buffer::Buffer(int64_t bytes) : size_(bytes) {
  const size_t rounded = (static_cast<size_t>(bytes) + 63) / 64 * 64;
  data_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, rounded ? rounded : 64)));
  if (!data_) throw std::bad_alloc();
}

void fill_packets(uint8_t* p, uint32_t value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(p + i * 4, &value, 4);
}

void fill_halo(const ActivationTensor& g, Rows rows, uint8_t* data, uint32_t value, int64_t begin,
               int64_t end) {
  if (g.halo == 0 && g.margin == 0) return;
  for (int64_t c = begin; c < end; ++c) {
    uint8_t* const channel = data + c * g.channel_stride * 4;
    for (int64_t i = 0; i < g.n; ++i) {
      // Everything from here to the next pixel run is halo.
      int64_t at = rows.begin == 0 ? i * g.image : g.packet(i, rows.begin, -g.halo);
      if (rows.begin < rows.end) {
        const int64_t row = g.packet(i, rows.begin, 0);
        fill_packets(channel + at * 4, value, row - at);
        at = row + g.w;
      }
      // Between two rows lies one halo: of one packet mostly, for which a loop would cost more.
      for (int64_t y = rows.begin + 1; y < rows.end; ++y, at += g.pitch) {
        if (g.halo == 1)
          std::memcpy(channel + at * 4, &value, 4);
        else
          fill_packets(channel + at * 4, value, g.halo);
      }
      const int64_t end_of = rows.end == g.h ? (i + 1) * g.image : g.packet(i, rows.end, -g.halo);
      fill_packets(channel + at * 4, value, end_of + g.halo - at);
    }
  }
}

void fill_margins(const ActivationTensor& g, Rows rows, uint8_t* data, uint32_t value) {
  for (int64_t c = 0; c < g.packets; ++c) {
    uint8_t* const channel = data + c * g.channel_stride * 4;
    if (rows.begin == 0) fill_packets(channel, value, g.margin * g.pitch);
    if (rows.end == g.h)
      fill_packets(channel + g.packet(0, g.h, -g.halo) * 4, value, g.margin * g.pitch + g.halo);
  }
}

namespace {

bool is_matrix(const ActivationTensor& g) { return g.is_float && g.h * g.w == 1 && g.halo == 0; }

// Floats between [pixels, channels] and packets, without padding. Channels go in runs of a cache
// line, since both ways one side is read or written a channel at a time.
template <bool kToPackets>
void transpose(const ActivationTensor& g, const void* from, void* to) {
  constexpr int64_t kRun = 16;
  const int64_t pixels = g.n * g.h * g.w;
  parallel_for(divide_up(g.channels, kRun), g.packets * g.channel_stride, [&](int64_t run, int) {
    const int64_t first = run * kRun, last = std::min(first + kRun, g.channels);
    const float* const a = static_cast<const float*>(from);
    float* const b = static_cast<float*>(to);
    for (int64_t i = 0; i < pixels; ++i)
      for (int64_t c = first; c < last; ++c) {
        const int64_t row = i * g.channels + c, packet = c * g.channel_stride + i;
        b[kToPackets ? packet : row] = a[kToPackets ? row : packet];
      }
  });
}

}  // namespace

void tensor_from_nchw(const ActivationTensor& g, Rows rows, const void* x, uint32_t halo_value,
                      uint8_t* data) {
  if (is_matrix(g)) return transpose<true>(g, x, data);
  const int64_t image = g.h * g.w;
  parallel_for(g.packets, g.packets * g.channel_stride, [&](int64_t c, int) {
    uint8_t* const channel = data + c * g.channel_stride * 4;
    for (int64_t i = 0; i < g.n; ++i)
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        uint8_t* const out = channel + g.packet(i, y, 0) * 4;
        if (g.is_float) {
          std::memcpy(out, static_cast<const float*>(x) + (i * g.channels + c) * image + y * g.w,
                      static_cast<size_t>(g.w) * 4);
          continue;
        }
        for (int64_t j = 0; j < 4; ++j) {
          const int64_t channel = c * 4 + j;
          if (channel >= g.channels) {
            for (int64_t k = 0; k < g.w; ++k) out[k * 4 + j] = 0;
            continue;
          }
          const uint8_t* const in =
              static_cast<const uint8_t*>(x) + (i * g.channels + channel) * image + y * g.w;
          for (int64_t k = 0; k < g.w; ++k) out[k * 4 + j] = in[k];
        }
      }
    fill_halo(g, rows, data, halo_value, c, c + 1);
  });
}

void tensor_to_nchw(const ActivationTensor& g, Rows rows, const uint8_t* data, void* y) {
  if (g.channel_stride == 1) {  // one row of numbers
    std::memcpy(y, data, static_cast<size_t>(g.channels) * (g.is_float ? 4 : 1));
    return;
  }
  if (is_matrix(g)) return transpose<false>(g, data, y);
  const int64_t image = g.h * g.w;
  parallel_for(g.packets, g.packets * g.channel_stride, [&](int64_t c, int) {
    const uint8_t* const channel = data + c * g.channel_stride * 4;
    for (int64_t i = 0; i < g.n; ++i)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const uint8_t* const in = channel + g.packet(i, row, 0) * 4;
        if (g.is_float) {
          std::memcpy(static_cast<float*>(y) + (i * g.channels + c) * image + row * g.w, in,
                      static_cast<size_t>(g.w) * 4);
          continue;
        }
        for (int64_t j = 0; j < 4 && c * 4 + j < g.channels; ++j) {
          uint8_t* const out =
              static_cast<uint8_t*>(y) + (i * g.channels + c * 4 + j) * image + row * g.w;
          for (int64_t k = 0; k < g.w; ++k) out[k] = in[k * 4 + j];
        }
      }
  });
}

void tensor_from_nhwc(const ActivationTensor& g, const float* x, uint8_t* data) {
  transpose<true>(g, x, data);
}

void tensor_to_nhwc(const ActivationTensor& g, const uint8_t* data, void* y) {
  if (g.is_float) return transpose<false>(g, data, y);
  uint8_t* const codes = static_cast<uint8_t*>(y);
  for (int64_t i = 0; i < g.n * g.h * g.w; ++i)
    for (int64_t c = 0; c < g.channels; ++c)
      codes[i * g.channels + c] = data[(c / 4 * g.channel_stride + i) * 4 + c % 4];
}

}  // namespace tops

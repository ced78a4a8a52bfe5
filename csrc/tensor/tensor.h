// SPDX-License-Identifier: Apache-2.0
// Activation tensors: [C packets][N][H + 2 margin][pitch] channel packets of 4 bytes, each four u8
// channels of one pixel or one float32.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/table.h"

namespace tops {

// Throws kUnsupportedShape where a product of sizes leaves int64.
int64_t checked_mul(int64_t a, int64_t b);

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// To whole cache lines.
inline int64_t round_up(int64_t bytes) { return divide_up(bytes, 64) * 64; }

// Shape and layout of one of rank 4; the memory is elsewhere. Rows [N, C] lie as images of one
// pixel, tokens [N, L, C] as images of one row of L pixels. pitch = w + halo: the right halo of a
// row is the left halo of the next one, so a padded row costs one halo, not two. margin: padding
// rows above and below, as many as halo unless keep() or strip() says otherwise. Channel packets
// are an odd number of cache lines apart: with a power of two, those of one pixel would share a few
// sets of the first-level cache.
struct ActivationTensor {
  int64_t channels = 0, packets = 0, n = 0, h = 0, w = 0, halo = 0, margin = 0;
  int64_t pitch = 0, image = 0, channel_stride = 0;
  bool is_float = false;

  static ActivationTensor make(int64_t channels, bool is_float, int64_t n, int64_t h, int64_t w,
                               int64_t halo);
  int64_t bytes() const {
    return checked_mul(checked_mul(packets, channel_stride), 4) + kSlackBytes;
  }
  int64_t packet(int64_t i, int64_t y, int64_t x) const {
    return i * image + (y + margin) * pitch + x + halo;
  }
  // Memory for `rows` rows of one image at a time, for row streaming.
  void keep(int64_t rows, int64_t margin_rows);
  // NCHW addressing of a caller's array: one channel after the other. Only without padding.
  void close_up() { channel_stride = h * w; }
  // `rows` rows of one image, as an image without padding above and below.
  ActivationTensor strip(int64_t rows) const;

 private:
  void set_channel_stride(int64_t used);
};

// Rows [begin, end) of an image.
struct Rows {
  int64_t begin, end;
};

// 64-byte aligned memory. Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  uint8_t* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  int64_t size_ = 0;
};

// Four u8 channels that all hold the zero point: the padding of an image.
inline uint32_t u8_packet(int32_t zero_point) {
  return static_cast<uint32_t>(zero_point) * 0x01010101u;
}

// n packets of one value.
void fill_packets(uint8_t* p, uint32_t value, int64_t n);

// Writes value to every packet beside these rows, and above the first and below the last row of an
// image, in channel packets [begin, end).
void fill_halo(const ActivationTensor& g, Rows rows, uint8_t* data, uint32_t value, int64_t begin,
               int64_t end);
// Fills the padding rows only.
void fill_margins(const ActivationTensor& g, Rows rows, uint8_t* data, uint32_t value);

// NCHW rows to and from packets. u8: element size 1; float: 4.
void tensor_from_nchw(const ActivationTensor& g, Rows rows, const void* x, uint32_t halo_value,
                      uint8_t* data);
void tensor_to_nchw(const ActivationTensor& g, Rows rows, const uint8_t* data, void* y);
// Channels last, [N, H * W, C], whole and without padding.
void tensor_from_nhwc(const ActivationTensor& g, const float* x, uint8_t* data);
void tensor_to_nhwc(const ActivationTensor& g, const uint8_t* data, void* y);

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
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

// An activation tensor in memory: [cells][n][h + 2 halo][pitch] 4-byte cells, pitch = w + halo. The
// right halo of a row is the left halo of the next one, so a padded row costs one halo, not two.
// Planes are an odd number of cache lines apart: with a power of two, the planes of one pixel would
// share a few sets of the first-level cache.
struct Grid {
  int64_t channels = 0, cells = 0, n = 0, h = 0, w = 0, halo = 0, pitch = 0, image = 0, plane = 0;
  bool is_float = false;

  static Grid make(int64_t channels, bool is_float, int64_t n, int64_t h, int64_t w, int64_t halo);
  int64_t bytes() const { return checked_mul(checked_mul(cells, plane), 4) + kSlackBytes; }
  int64_t cell(int64_t i, int64_t y, int64_t x) const {
    return i * image + (y + halo) * pitch + x + halo;
  }
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

// Four u8 channels that all hold the zero point: what lies outside an image.
inline uint32_t u8_cell(int32_t zero_point) {
  return static_cast<uint32_t>(zero_point) * 0x01010101u;
}

// n cells of one value.
void fill_cells(uint8_t* p, uint32_t value, int64_t n);

// Writes value to every cell of the grid's planes [begin, end) that is no pixel.
void fill_halo(const Grid& g, uint8_t* data, uint32_t value, int64_t begin, int64_t end);

// NCHW rows to and from cells. u8: element size 1; float: 4.
void grid_from_nchw(const Grid& g, const void* x, uint32_t halo_value, uint8_t* data);
void grid_to_nchw(const Grid& g, const uint8_t* data, void* y);

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
// Sums and sums of squares of the four channels of u8 packets, exact in integers.

// Vectors that 32-bit sums hold: each adds 4 * 255 * 255 to a lane at most.
constexpr int64_t kSumSteps = 8192;

// Adds the lanes to the totals of their channels: lane i belongs to channel i % 4.
static TOPS_INLINE void flush_lanes(V::I lanes, int64_t* total) {
  alignas(64) int32_t values[V::kLanes];
  V::store(values, lanes);
  for (int i = 0; i < V::kLanes; ++i) total[i % 4] += values[i];
}

static void channel_sums(const uint8_t* x, int64_t rows, int64_t pitch, int64_t n, int64_t* sum,
                         int64_t* square) {
  V::I sums = V::set1(0), squares = V::set1(0);
  int64_t steps = 0;
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t i = 0; i < n; i += V::kLanes) {
      const V::I v = V::packets_to_channels(load_some(x + (y * pitch + i) * 4, n - i));
      sums = V::add_byte_sums(sums, v);
      squares = V::add_byte_squares(squares, v);
      if (++steps < kSumSteps) continue;
      flush_lanes(sums, sum);
      flush_lanes(squares, square);
      sums = squares = V::set1(0);
      steps = 0;
    }
  flush_lanes(sums, sum);
  flush_lanes(squares, square);
}

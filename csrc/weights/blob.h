// SPDX-License-Identifier: Apache-2.0
// Blobs of packed weights: plain arrays one behind the other, little-endian. They are made in one
// pass, and every size is checked as they are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tops {

// Throws kBadWeights: these bytes are not what packing made.
[[noreturn]] void bad_blob(const char* what);

template <class T>
void append(std::vector<uint8_t>& blob, const T* data, size_t n) {
  const uint8_t* const p = reinterpret_cast<const uint8_t*>(data);
  blob.insert(blob.end(), p, p + n * sizeof(T));
}

class BlobReader {
 public:
  BlobReader(const uint8_t* at, int64_t bytes) : at_(at), end_(at + bytes) {}

  int64_t left() const { return end_ - at_; }

  // The next n values. Throws kBadWeights where fewer are left.
  template <class T>
  const T* take(int64_t n) {
    if (n < 0 || n > left() / static_cast<int64_t>(sizeof(T))) bad_blob("truncated");
    const T* const taken = reinterpret_cast<const T*>(at_);
    at_ += n * static_cast<int64_t>(sizeof(T));
    return taken;
  }

  // The row pointers of a CSR matrix, [rows + 1]: from 0, never falling, and no more entries than
  // fit the remaining bytes at entry_bytes each.
  const int64_t* take_row_ptr(int64_t rows, int64_t entry_bytes);

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

}  // namespace tops

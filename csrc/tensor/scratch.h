// SPDX-License-Identifier: Apache-2.0
// Scratch memory of the calling thread.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace tops {

// Grows, never shrinks, ends with the thread; the next call may move it.
inline uint8_t* thread_scratch(int64_t bytes) {
  static thread_local Buffer buffer;
  if (buffer.size() < bytes) buffer = Buffer(bytes);
  return buffer.data();
}

}  // namespace tops

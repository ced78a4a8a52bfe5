// SPDX-License-Identifier: Apache-2.0
// Instruction sets: which this machine can use, and which is in force on this thread.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace tops {

struct IsaReport {
  std::string name;
  std::string reason;  // empty where the instruction set can be used
};

// Every instruction set of the interface, best last, and why one cannot be used here.
const std::vector<IsaReport>& isa_report();

// The kernels in force on this thread: the forced set, else TERNARY_OPS_ISA, else the best. Throws
// kUnsupportedDevice where TERNARY_OPS_ISA names one that cannot be used.
const KernelTable& kernels();

// KernelTable::linear_float of bfloat16 rows that belongs to those kernels; null where they or the
// CPU have none.
using FloatLinearKernel = void (*)(const FloatLinearArgs&, int64_t begin, int64_t end);
FloatLinearKernel bfloat16_linear();

// Forces a set on the calling thread; the empty name clears. Throws kUnsupportedDevice.
void force_isa(const std::string& name);

// The kernels of the thread that handed out work, while this thread does it.
class KernelScope {
 public:
  explicit KernelScope(const KernelTable& table);
  ~KernelScope();
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;

 private:
  const KernelTable* before_;
};

}  // namespace tops

// SPDX-License-Identifier: Apache-2.0
// What the native tests share: counted checks, memory between guard pages, random numbers.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "isa/isa.h"

namespace tops::test {

inline int passed = 0, failed = 0;

inline void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok && failed <= 20) std::printf("FAILED %s\n", what.c_str());
}

// Prints the counts; the exit status.
inline int report(const char* program) {
  std::printf("%s: %d passed, %d failed\n", program, passed, failed);
  return failed ? 1 : 0;
}

// n bytes that end where an inaccessible page begins, and whose first page follows another one.
class Guarded {
 public:
  explicit Guarded(size_t n, size_t align = 1) : n_(n) {
    const size_t page = 4096, body = (n + align + page - 1) / page * page;
    map_bytes_ = body + 2 * page;
    map_ = static_cast<uint8_t*>(
        mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (map_ == MAP_FAILED) std::abort();
    mprotect(map_, page, PROT_NONE);
    mprotect(map_ + page + body, page, PROT_NONE);
    const size_t slack = align > 1 ? (n + align - 1) / align * align - n : 0;
    data_ = map_ + page + body - n - slack;
  }
  ~Guarded() { munmap(map_, map_bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint8_t* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t size() const { return n_; }

 private:
  size_t n_, map_bytes_ = 0;
  uint8_t *map_ = nullptr, *data_ = nullptr;
};

struct Rng {
  std::mt19937_64 engine;
  int64_t in(int64_t lo, int64_t hi) {
    return std::uniform_int_distribution<int64_t>(lo, hi)(engine);
  }
  float real(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(engine); }
};

// The instruction sets of this machine.
inline std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const IsaReport& r : isa_report())
    if (r.reason.empty()) names.push_back(r.name);
  return names;
}

struct Options {
  uint64_t seed = 1;
  int cases;

  // [--seed N] [--cases N]; prints them, and the instruction sets of this machine.
  Options(int argc, char** argv, const char* program, int default_cases) : cases(default_cases) {
    for (int i = 1; i + 1 < argc; i += 2) {
      if (!std::strcmp(argv[i], "--seed")) seed = std::strtoull(argv[i + 1], nullptr, 10);
      if (!std::strcmp(argv[i], "--cases")) cases = std::atoi(argv[i + 1]);
    }
    std::printf("%s --seed %lu --cases %d on:", program, static_cast<unsigned long>(seed), cases);
    for (const std::string& isa : isas()) std::printf(" %s", isa.c_str());
    std::printf("\n");
  }
};

}  // namespace tops::test

// SPDX-License-Identifier: Apache-2.0
#include "isa/isa.h"

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "base/error.h"

namespace tops {
namespace {

struct CpuFlags {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, avx512_bf16 = false;  // by CPUID
  bool neon_dot = false;                   // by the kernel's word (AT_HWCAP)
  bool os_avx = false, os_avx512 = false;  // enabled by the operating system (XGETBV)
};

CpuFlags read_cpu() {
  CpuFlags f;
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = c & (1u << 27), avx = c & (1u << 28), fma = c & (1u << 12),
             f16c = c & (1u << 29);
  if (osxsave) {
    unsigned lo = 0, hi = 0;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    f.os_avx = (lo & 0x6) == 0x6;       // xmm and ymm state
    f.os_avx512 = (lo & 0xe6) == 0xe6;  // and opmask, zmm0-15, zmm16-31
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    f.avx2 = avx && fma && f16c && (b & (1u << 5));
    const bool f512 = b & (1u << 16), dq = b & (1u << 17), bw = b & (1u << 30), vl = b & (1u << 31);
    f.avx512_vnni = f.avx2 && f512 && dq && bw && vl && (c & (1u << 11));
#if defined(TOPS_EMULATED)
    f.avx512_vnni = f.os_avx512 = true;
#endif
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
      f.avx_vnni = f.avx2 && (a & (1u << 4));
      f.avx512_bf16 = f.avx512_vnni && (a & (1u << 5));
    }
  }
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  f.neon_dot = getauxval(AT_HWCAP) & kDotProducts;
#elif defined(__aarch64__)
  f.neon_dot = true;  // every 64-bit Apple processor that runs a supported system
#endif
  return f;
}

const KernelTable* table_of(const std::string& name) {
  if (name == "scalar") return &scalar_kernels();
#if defined(__x86_64__)
  if (name == "avx2") return &avx2_kernels();
  if (name == "avxvnni") return &avxvnni_kernels();
  if (name == "avx512vnni") return &avx512vnni_kernels();
#elif defined(__aarch64__)
  if (name == "neon_dot") return &neon_dot_kernels();
#endif
  return nullptr;
}

std::vector<IsaReport> make_report() {
  const CpuFlags cpu = read_cpu();
  auto x86 = [&](bool has, bool os, const char* missing) -> std::string {
#if defined(__x86_64__)
    if (!has) return std::string("the CPU lacks ") + missing;
    return os ? "" : "the operating system has not enabled its registers (XGETBV)";
#else
    return (void)has, (void)os, (void)missing, "not an x86-64 machine";
#endif
  };
#if defined(__aarch64__)
  const char* const arm = cpu.neon_dot ? "" : "the CPU lacks dot products (ARMv8.2 DotProd)";
#else
  const char* const arm = "not a 64-bit ARM machine";
#endif
  return {{"scalar", ""},
          {"neon_dot", arm},
          {"avx2", x86(cpu.avx2, cpu.os_avx, "AVX2, FMA and F16C")},
          {"avxvnni", x86(cpu.avx_vnni, cpu.os_avx, "AVX-VNNI")},
          {"avx512vnni", x86(cpu.avx512_vnni, cpu.os_avx512, "AVX-512 F, DQ, BW, VL and VNNI")}};
}

const KernelTable& checked(const std::string& name) {
  std::string usable, why;
  for (const IsaReport& r : isa_report()) {
    if (r.name == name && r.reason.empty()) return *table_of(name);
    if (r.name == name) why = ": " + r.reason;
    if (r.reason.empty()) usable += (usable.empty() ? "" : ", ") + r.name;
  }
  fail(ErrorKind::kUnsupportedDevice, "an instruction set that can be used here",
       "'" + name + "'" + why, "Use one of " + usable + ".");
}

const KernelTable& best() {
  static const KernelTable& table = [&]() -> const KernelTable& {
    const char* env = std::getenv("TERNARY_OPS_ISA");
    if (env && *env) return checked(env);
    const KernelTable* found = &scalar_kernels();
    for (const IsaReport& r : isa_report())
      if (r.reason.empty()) found = table_of(r.name);
    return *found;
  }();
  return table;
}

thread_local const KernelTable* forced = nullptr;

}  // namespace

const std::vector<IsaReport>& isa_report() {
  static const std::vector<IsaReport> report = make_report();
  return report;
}

const KernelTable& kernels() { return forced ? *forced : best(); }

FloatLinearKernel bfloat16_linear() {
#if defined(__x86_64__) && !defined(TOPS_EMULATED)
  static const bool has = read_cpu().avx512_bf16;
  if (has && &kernels() == &avx512vnni_kernels()) return linear_bfloat16;
#endif
  return nullptr;
}

KernelScope::KernelScope(const KernelTable& table) : before_(forced) { forced = &table; }
KernelScope::~KernelScope() { forced = before_; }

void force_isa(const std::string& name) { forced = name.empty() ? nullptr : &checked(name); }

}  // namespace tops

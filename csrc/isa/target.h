// SPDX-License-Identifier: Apache-2.0
// Code for one instruction set: target pragmas and forced inlining, for the compilers we know.
#pragma once

// A region compiled for more than the baseline. Open it after every #include, so that no inline
// function of a standard header is emitted with instructions that another machine lacks.
// TOPS_EMULATED: tests compile everything for AVX2, and AVX-512 as plain C++ (tests/cpp/emulated).
#define TOPS_PRAGMA(x) _Pragma(#x)
#if defined(TOPS_EMULATED)
#define TOPS_TARGET_BEGIN(isa)
#define TOPS_TARGET_END
#elif defined(__clang__)
#define TOPS_TARGET_BEGIN(isa) \
  TOPS_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TOPS_TARGET_END TOPS_PRAGMA(clang attribute pop)
#else
#define TOPS_TARGET_BEGIN(isa) TOPS_PRAGMA(GCC push_options) TOPS_PRAGMA(GCC target(isa))
#define TOPS_TARGET_END TOPS_PRAGMA(GCC pop_options)
#endif

// A sanitizer's checks inside whole loops inlined into one function take the compiler minutes.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TOPS_INLINE inline
#else
#define TOPS_INLINE inline __attribute__((always_inline))
#endif

// Compiled once, neither inlined nor copied for constant arguments.
#if defined(__clang__)
#define TOPS_OUTLINE __attribute__((noinline))
#else
#define TOPS_OUTLINE __attribute__((noinline, noclone))
#endif

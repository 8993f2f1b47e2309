// SPDX-License-Identifier: Apache-2.0
// What every header needs to know about its compiler: language level, host-device functions, instruction set, and the
// inline namespace that keeps translation units built differently from sharing code.
//
// Sums here have a promised order, so value-changing optimisation is refused: -ffast-math is an error. Where a product
// feeds a sum the library writes mo::fma, so the compiler's own contraction has nothing left to decide.
#pragma once

#include <moiety/core/version.hpp>

#if __cplusplus < 202002L
#error "moiety needs C++20: compile with -std=c++20."
#endif
#if defined(__FAST_MATH__)
#error "moiety promises the order of its sums: compile without -ffast-math."
#endif

// Policies are written once for host and device.
#if defined(__CUDACC__)
#define MOIETY_HD __host__ __device__
#else
#define MOIETY_HD
#endif

// Before a template of host and device that calls what it is given: nvcc asks of no instance where that may run.
#if defined(__CUDACC__)
#define MOIETY_CALLS_GIVEN _Pragma("nv_exec_check_disable")
#else
#define MOIETY_CALLS_GIVEN
#endif

// Before a loop of device code over registers: it must be written out, as registers have no indices.
#if defined(__CUDACC__)
#define MOIETY_REGISTERS _Pragma("unroll")
#else
#define MOIETY_REGISTERS
#endif

// Asks for a loop to be written out so many times; once is not at all. The front end of nvcc does not know the request, and
// needs none on the host.
#define MOIETY_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__)
#define MOIETY_UNROLL(times)
#else
#define MOIETY_UNROLL(times) MOIETY_PRAGMA(GCC unroll times)
#endif

// Before a short loop over lanes: keeps it whole for the vectoriser of g++, which at -O3 otherwise writes it out first.
#if defined(__GNUC__) && !defined(__clang__)
#define MOIETY_LANES MOIETY_UNROLL(1)
#else
#define MOIETY_LANES
#endif

// Bytes of the widest vector register that the build may use.
#if defined(__AVX512F__)
#define MOIETY_VECTOR_BYTES 64
#elif defined(__AVX__)
#define MOIETY_VECTOR_BYTES 32
#else
#define MOIETY_VECTOR_BYTES 16
#endif

// Whether a fused multiply-add is one instruction.
#if defined(__FMA__) || defined(__AVX512F__) || defined(__ARM_FEATURE_FMA) || defined(__CUDA_ARCH__)
#define MOIETY_HAS_FMA 1
#else
#define MOIETY_HAS_FMA 0
#endif

#define MOIETY_JOIN_(major, minor, patch, isa) v##major##_##minor##_##patch##_##isa
#define MOIETY_JOIN(major, minor, patch, isa) MOIETY_JOIN_(major, minor, patch, isa)
#if defined(__AVX512VL__) && defined(__FMA__)
#define MOIETY_HAS_HALVES 1
#else
#define MOIETY_HAS_HALVES 0
#endif
#if defined(__AVX512BF16__) && MOIETY_HAS_HALVES
#define MOIETY_ISA avx512bf16
#elif defined(__AVX512BF16__)
#define MOIETY_ISA avx512bf16_whole
#elif defined(__AVX512F__) && MOIETY_HAS_HALVES
#define MOIETY_ISA avx512
#elif defined(__AVX512F__)
#define MOIETY_ISA avx512_whole
#elif defined(__AVX2__) && defined(__FMA__)
#define MOIETY_ISA avx2_fma
#elif defined(__AVX__) && defined(__FMA__)
#define MOIETY_ISA avx_fma
#elif defined(__AVX__)
#define MOIETY_ISA avx
#else
#define MOIETY_ISA baseline
#endif
#define MOIETY_ABI MOIETY_JOIN(MOIETY_VERSION_MAJOR, MOIETY_VERSION_MINOR, MOIETY_VERSION_PATCH, MOIETY_ISA)

namespace moiety::inline MOIETY_ABI {

/// Bytes of one vector register.
inline constexpr int vector_bytes = MOIETY_VECTOR_BYTES;

}  // namespace moiety

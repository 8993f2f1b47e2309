// SPDX-License-Identifier: Apache-2.0
// The instructions that C++ has no words for, from sm_80 on: one function each, and no policy.
//
//   mma<T>                     C [16 x 8] += A [16 x 16] B [16 x 8] of a warp, T bf16 or fp16, float sums; of T float, in tf32,
//                              C += A [16 x 8] B [8 x 8]; of T e4m3, C += A [16 x 32] B [32 x 8], which code for older
//                              devices than sm_89 does not have: it traps
//   rounded_to_tf32            bits of a float to the nearest of 10 bits behind the point, halves away from 0
//   ldmatrix_x4, _trans        four 8 x 8 matrices of 16-bit elements from shared memory
//   copy_async_16              16 bytes from global to shared memory past the registers; bytes beyond `bytes` become 0
//   commit_copies              closes a group of a thread's copies
//   wait_copies<N>             until all but the thread's N youngest groups have arrived
//   dynamic_shared             the shared memory that the launch asked for
//
// Which lane holds what is in fragments.hpp. Addresses given to ldmatrix and copy_async_16 are multiples of 16 bytes.
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/numbers.hpp>

#include <cuda_runtime.h>

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

__device__ inline unsigned shared_address(void const* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

/// Of an architecture that has them.
__device__ inline void mma_of_e4m3([[maybe_unused]] float (&c)[4], [[maybe_unused]] std::uint32_t const (&a)[4],
                                   [[maybe_unused]] std::uint32_t b0, [[maybe_unused]] std::uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

template <class T>
__device__ inline void mma(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::same_as<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else if constexpr (std::same_as<T, float>)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else if constexpr (std::same_as<T, e4m3>)
    mma_of_e4m3(c, a, b0, b1);
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline std::uint32_t rounded_to_tf32(std::uint32_t bits) {
  std::uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

__device__ inline void ldmatrix_x4(std::uint32_t (&to)[4], void const* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(shared))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(std::uint32_t (&to)[4], void const* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(shared))
               : "memory");
}

/// Reads `bytes` of 0 ... 16 bytes, none of them if 0.
__device__ inline void copy_async_16(void* shared, void const* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" : : : "memory"); }
template <int N> __device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" : : "n"(N) : "memory");
}

__device__ inline std::byte* dynamic_shared() {
  extern __shared__ __align__(128) std::byte moiety_dynamic_shared[];
  return moiety_dynamic_shared;
}

}  // namespace moiety::inline MOIETY_ABI::kernels

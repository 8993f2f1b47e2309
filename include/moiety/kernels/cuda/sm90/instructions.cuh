// SPDX-License-Identifier: Apache-2.0
// The instructions of sm_90a that C++ has no words for: one function each, and no policy. Elsewhere they trap.
//
//   barrier            counts arrivals, and bytes that copies bring, phase by phase: the phase of parity 0 first, then 1, 0 ...
//   init_barrier       one thread; then publish_barriers, and a __syncthreads before anybody else uses it
//   arrive             what a thread wrote and read before is done when a waiting thread goes on
//   arrive_expecting   the same, and the phase does not complete before copies have brought that many bytes more
//   wait_phase         until the phase of that parity is complete; so before any phase is, parity 1 is
//   load_box           one thread: the box whose first element is column x, a multiple of 16 bytes, of row y (of group
//                      z), into a swizzled tile at a multiple of 1024 bytes. Its bytes are counted by the barrier, those
//                      outside, which become 0, too
//   publish_writes     a thread's own writes, to operands that it or a barrier's waiters multiply
//   multiply_async     sums [64 x N] of a warpgroup (+)= A [64 x 16] B [16 x N] of the described tiles (matrices.hpp); without
//                      `add` the sums begin anew. All four warps, the first a multiple of four, N of 32, 64, 96, 128,
//                      192, 256. Of e4m3, k first only, A [64 x 32] B [32 x N]; sums keep about 14 bits
//   begin_products     before the first product of sums that were touched; then products; then commit_products
//   wait_products<N>   until all but the N youngest groups of products are done: sums may be read, operands overwritten
//   hold               the compiler moves no use of these registers across
//   give_registers     the registers of each thread of a warpgroup become N, a multiple of 8 of 24 ... 256; take_registers
//                      waits until other warpgroups have given enough
//   wait_for_previous_kernel, let_next_kernel_start    between kernels of a stream that were launched to overlap
#pragma once

#include <moiety/core/config.hpp>
#include <moiety/core/e4m3.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/instructions.cuh>
#include <moiety/kernels/cuda/sm90/matrices.hpp>
#include <moiety/kernels/cuda/sm90/tensor_map.hpp>

#include <cuda_runtime.h>

#include <concepts>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels::sm90 {

// The assembler of another architecture refuses these.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MOIETY_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define MOIETY_SM90A(...) __trap()
#endif

using barrier = std::uint64_t;

__device__ inline void init_barrier(barrier* b, unsigned arrivals) {
  MOIETY_SM90A("mbarrier.init.shared::cta.b64 [%0], %1;\n" : : "r"(shared_address(b)), "r"(arrivals) : "memory");
}
__device__ inline void publish_barriers() {
  MOIETY_SM90A("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" : : : "memory");
}
__device__ inline void arrive(barrier* b) {
  MOIETY_SM90A("mbarrier.arrive.shared::cta.b64 _, [%0];\n" : : "r"(shared_address(b)) : "memory");
}
__device__ inline void arrive_expecting(barrier* b, unsigned bytes) {
  MOIETY_SM90A("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
               :
               : "r"(shared_address(b)), "r"(bytes)
               : "memory");
}
__device__ inline void wait_phase([[maybe_unused]] barrier* b, [[maybe_unused]] unsigned parity) {
  unsigned complete = 0;
  while (complete == 0)
    MOIETY_SM90A(
        "{\n.reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n}\n"
        : "=r"(complete)
        : "r"(shared_address(b)), "r"(parity)
        : "memory");
}
__device__ inline void publish_writes() { MOIETY_SM90A("fence.proxy.async.shared::cta;\n" : : : "memory"); }

__device__ inline void load_box(void* shared, tensor_map const& map, barrier* b, int x, int y) {
  MOIETY_SM90A(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n"
      :
      : "r"(shared_address(shared)), "l"(&map), "r"(shared_address(b)), "r"(x), "r"(y)
      : "memory");
}
__device__ inline void load_box(void* shared, tensor_map const& map, barrier* b, int x, int y, int z) {
  MOIETY_SM90A(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];\n"
      :
      : "r"(shared_address(shared)), "l"(&map), "r"(shared_address(b)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// clang-format off
#define MOIETY_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define MOIETY_NAMES_1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MOIETY_NAMES_2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define MOIETY_NAMES_3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MOIETY_NAMES_4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define MOIETY_NAMES_5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MOIETY_NAMES_6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define MOIETY_NAMES_7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MOIETY_SUMS(i) \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
  "+f"(sums[i + 6]), "+f"(sums[i + 7]), "+f"(sums[i + 8]), "+f"(sums[i + 9]), "+f"(sums[i + 10]), "+f"(sums[i + 11]), \
  "+f"(sums[i + 12]), "+f"(sums[i + 13]), "+f"(sums[i + 14]), "+f"(sums[i + 15])
#define MOIETY_NAMES_OF_32 MOIETY_NAMES_0
#define MOIETY_SUMS_OF_32 MOIETY_SUMS(0)
#define MOIETY_NAMES_OF_64 MOIETY_NAMES_0 ", " MOIETY_NAMES_1
#define MOIETY_SUMS_OF_64 MOIETY_SUMS(0), MOIETY_SUMS(16)
#define MOIETY_NAMES_OF_96 MOIETY_NAMES_0 ", " MOIETY_NAMES_1 ", " MOIETY_NAMES_2
#define MOIETY_SUMS_OF_96 MOIETY_SUMS(0), MOIETY_SUMS(16), MOIETY_SUMS(32)
#define MOIETY_NAMES_OF_128 MOIETY_NAMES_0 ", " MOIETY_NAMES_1 ", " MOIETY_NAMES_2 ", " MOIETY_NAMES_3
#define MOIETY_SUMS_OF_128 MOIETY_SUMS(0), MOIETY_SUMS(16), MOIETY_SUMS(32), MOIETY_SUMS(48)
#define MOIETY_NAMES_OF_192 MOIETY_NAMES_0 ", " MOIETY_NAMES_1 ", " MOIETY_NAMES_2 ", " MOIETY_NAMES_3 ", " MOIETY_NAMES_4 ", " MOIETY_NAMES_5
#define MOIETY_SUMS_OF_192 MOIETY_SUMS(0), MOIETY_SUMS(16), MOIETY_SUMS(32), MOIETY_SUMS(48), MOIETY_SUMS(64), MOIETY_SUMS(80)
#define MOIETY_NAMES_OF_256 MOIETY_NAMES_0 ", " MOIETY_NAMES_1 ", " MOIETY_NAMES_2 ", " MOIETY_NAMES_3 ", " MOIETY_NAMES_4 ", " MOIETY_NAMES_5 ", " MOIETY_NAMES_6 ", " MOIETY_NAMES_7
#define MOIETY_SUMS_OF_256 MOIETY_SUMS(0), MOIETY_SUMS(16), MOIETY_SUMS(32), MOIETY_SUMS(48), MOIETY_SUMS(64), MOIETY_SUMS(80), MOIETY_SUMS(96), MOIETY_SUMS(112)
// The operands behind the sums are numbered from N / 2 on.
#define MOIETY_WGMMA(N, depth_and_type, a, b, add, orders)                                                       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add ", 0;\n"                                            \
               "wgmma.mma_async.sync.aligned.m64n" #N depth_and_type " {" MOIETY_NAMES_OF_##N "}, "                \
               "%" #a ", %" #b ", add, 1, 1" orders ";\n}\n"                                                      \
               : MOIETY_SUMS_OF_##N                                                                              \
               : "l"(a_descriptor), "l"(b_descriptor), "r"(adds), "n"(a_outer_first), "n"(b_outer_first))
#define MOIETY_WGMMA_OF(N, a, b, add, a_order, b_order)                                                          \
  if constexpr (columns == N && std::same_as<T, bf16>)                                                           \
    MOIETY_WGMMA(N, "k16.f32.bf16.bf16", a, b, add, ", %" #a_order ", %" #b_order);                              \
  if constexpr (columns == N && std::same_as<T, fp16>)                                                           \
    MOIETY_WGMMA(N, "k16.f32.f16.f16", a, b, add, ", %" #a_order ", %" #b_order);                                \
  if constexpr (columns == N && std::same_as<T, e4m3>) MOIETY_WGMMA(N, "k32.f32.e4m3.e4m3", a, b, add, "")
// clang-format on

template <class T, int N, tile_order A, tile_order B>
__device__ inline void multiply_async([[maybe_unused]] float (&sums)[N / 2], [[maybe_unused]] std::uint64_t a,
                                      [[maybe_unused]] std::uint64_t b, [[maybe_unused]] bool add) {
  static_assert(std::same_as<T, bf16> || std::same_as<T, fp16> ||
                (std::same_as<T, e4m3> && A == tile_order::k_first && B == tile_order::k_first));
  static_assert(N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int columns = N, a_outer_first = A == tile_order::outer_first, b_outer_first = B == tile_order::outer_first;
  std::uint64_t const a_descriptor = a, b_descriptor = b;
  int const adds = add;
  MOIETY_WGMMA_OF(32, 16, 17, 18, 19, 20);
  MOIETY_WGMMA_OF(64, 32, 33, 34, 35, 36);
  MOIETY_WGMMA_OF(96, 48, 49, 50, 51, 52);
  MOIETY_WGMMA_OF(128, 64, 65, 66, 67, 68);
  MOIETY_WGMMA_OF(192, 96, 97, 98, 99, 100);
  MOIETY_WGMMA_OF(256, 128, 129, 130, 131, 132);
#else
  __trap();
#endif
}
#undef MOIETY_NAMES_0
#undef MOIETY_NAMES_1
#undef MOIETY_NAMES_2
#undef MOIETY_NAMES_3
#undef MOIETY_NAMES_4
#undef MOIETY_NAMES_5
#undef MOIETY_NAMES_6
#undef MOIETY_NAMES_7
#undef MOIETY_SUMS
#undef MOIETY_NAMES_OF_32
#undef MOIETY_SUMS_OF_32
#undef MOIETY_NAMES_OF_64
#undef MOIETY_SUMS_OF_64
#undef MOIETY_NAMES_OF_96
#undef MOIETY_SUMS_OF_96
#undef MOIETY_NAMES_OF_128
#undef MOIETY_SUMS_OF_128
#undef MOIETY_NAMES_OF_192
#undef MOIETY_SUMS_OF_192
#undef MOIETY_NAMES_OF_256
#undef MOIETY_SUMS_OF_256
#undef MOIETY_WGMMA
#undef MOIETY_WGMMA_OF

__device__ inline void begin_products() { MOIETY_SM90A("wgmma.fence.sync.aligned;\n" : : : "memory"); }
__device__ inline void commit_products() { MOIETY_SM90A("wgmma.commit_group.sync.aligned;\n" : : : "memory"); }
template <int N> __device__ inline void wait_products() {
  MOIETY_SM90A("wgmma.wait_group.sync.aligned %0;\n" : : "n"(N) : "memory");
}
template <int N> __device__ inline void hold([[maybe_unused]] float (&sums)[N]) {
  MOIETY_REGISTERS
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[i]) : : "memory");
}

template <int N> __device__ inline void give_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
  MOIETY_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;\n" : : "n"(N));
}
template <int N> __device__ inline void take_registers() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
  MOIETY_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;\n" : : "n"(N));
}

__device__ inline void wait_for_previous_kernel() { MOIETY_SM90A("griddepcontrol.wait;\n" : : : "memory"); }
__device__ inline void let_next_kernel_start() { MOIETY_SM90A("griddepcontrol.launch_dependents;\n" : : : "memory"); }

#undef MOIETY_SM90A

}  // namespace moiety::inline MOIETY_ABI::kernels::sm90

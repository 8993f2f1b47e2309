// SPDX-License-Identifier: Apache-2.0
// The rows of zero-compute experts on a CUDA device: a warp takes one row at a time. The bits of the host.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/product.cuh>
#include <moiety/kernels/identity_rows.hpp>

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int identity_threads = 128, identity_warps = identity_threads / 32;

/// What a row of a zero-compute expert reads and writes; x and parts only in backward.
template <scalar T> struct identity_rows {
  using S = sum_t<T>;
  permutation_view order;
  std::int64_t first;
  rows_of<T> from, x;
  S const* row_weights;
  S* parts;
  std::int64_t count;
  matrix_view<T> to;
};

template <scalar T> __global__ void __launch_bounds__(identity_threads) scale_rows(identity_rows<T> const of) {
  using S = sum_t<T>;
  std::int64_t const lane = threadIdx.x % 32u, warps = std::int64_t{gridDim.x} * identity_warps;
  std::int64_t const end = of.order.starts[of.order.experts];
  for (std::int64_t r = of.order.starts[of.first] + std::int64_t{blockIdx.x} * identity_warps + threadIdx.x / 32u;
       r < end; r += warps) {
    T const* const from = of.from.data + row_number(of.from, r) * of.from.stride;
    T* const to = of.to.row(r);
    for (std::int64_t c = lane; c < of.to.cols(); c += 32)
      to[c] = of.row_weights != nullptr ? static_cast<T>(of.row_weights[r] * static_cast<S>(from[c])) : from[c];
    if (of.parts == nullptr) continue;
    T const* const x = of.x.data + row_number(of.x, r) * of.x.stride;
    S sum = 0;
    for (std::int64_t c = lane; c < of.to.cols(); c += 32)
      sum = fma(static_cast<S>(from[c]), static_cast<S>(x[c]), sum);
    MOIETY_REGISTERS
    for (int distance = 16; distance > 0; distance /= 2) sum = sum + __shfl_xor_sync(0xffffffffu, sum, distance);
    for (std::int64_t p = lane; p < of.count; p += 32) of.parts[r * of.count + p] = p == 0 ? sum : S{0};
  }
}

template <scalar T> void launch_identity(cuda_engine& engine, char const* name, identity_rows<T> const& of) {
  std::int64_t const most = of.order.tokens * of.order.slots;
  std::int64_t const blocks =
      std::min((most + identity_warps - 1) / identity_warps, std::int64_t{16} * engine.multiprocessors());
  engine.launch(name, scale_rows<T>, {blocks, identity_threads}, of);
}

}  // namespace gpu

template <scalar T>
void pass_rows(cuda_engine& engine, permutation_view const& order, std::int64_t first, rows_of<T> in,
               sum_t<T> const* row_weights, matrix_view<T> out) {
  gpu::launch_identity<T>(engine, "pass_rows", {order, first, in, {}, row_weights, nullptr, 0, out});
}

template <scalar T>
void pass_rows_backward(cuda_engine& engine, permutation_view const& order, std::int64_t first, rows_of<T> dy,
                        rows_of<T> x, sum_t<T> const* row_weights, sum_t<T>* parts, std::int64_t count,
                        matrix_view<T> dx) {
  gpu::launch_identity<T>(engine, "pass_rows_backward", {order, first, dy, x, row_weights, parts, count, dx});
}

}  // namespace moiety::inline MOIETY_ABI::kernels

// SPDX-License-Identifier: Apache-2.0
// jitter_rows on a CUDA device: a block takes one token at a time, a thread its columns.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/numbers.hpp>
#include <moiety/kernels/cuda/portable/gather.cuh>
#include <moiety/kernels/jitter.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

template <scalar T, class Noise>
__global__ void __launch_bounds__(row_threads) multiply_noise(Noise const noise, token_table const tokens,
                                                              matrix_view<T const> const x, matrix_view<T> const out) {
  using S = sum_t<T>;
  for (std::int64_t t = blockIdx.x; t < x.rows(); t += gridDim.x)
    for (std::int64_t h = threadIdx.x; h < x.cols(); h += row_threads)
      out.row(t)[h] = static_cast<T>(static_cast<S>(x.row(t)[h]) *
                                     noise.template factor<S>(tokens.first_row + t, tokens.moment(), h, x.cols()));
}

}  // namespace gpu

template <scalar T, class Noise>
void jitter_rows(cuda_engine& engine, Noise const& noise, token_table const& tokens, matrix_view<T const> x,
                 matrix_view<T> out) {
  engine.launch("jitter_rows", gpu::multiply_noise<T, Noise>, {engine.blocks_in_turn(x.rows()), gpu::row_threads},
                noise, tokens, x, out);
}

}  // namespace moiety::inline MOIETY_ABI::kernels

// SPDX-License-Identifier: Apache-2.0
// The noise of logits on a CUDA device: a block takes one token at a time, a thread its experts.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/cuda/portable/gather.cuh>
#include <moiety/kernels/logit_noise.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

template <class Noise, class S>
__global__ void __launch_bounds__(row_threads)
    add_noise(detail::logit_noise_of<Noise, S> const of, matrix_view<S> const z) {
  for (std::int64_t t = blockIdx.x; t < z.rows(); t += gridDim.x)
    for (std::int64_t e = threadIdx.x; e < z.cols(); e += row_threads)
      z.row(t)[e] = of.noisy(t, e, z.cols(), z.row(t)[e]);
}

template <class Noise, class S>
__global__ void __launch_bounds__(row_threads)
    noise_gradient(detail::logit_noise_of<Noise, S> const of, token_state const* states, matrix_view<S const> const dz,
                   matrix_view<S> const da, bool const adds) {
  for (std::int64_t t = blockIdx.x; t < da.rows(); t += gridDim.x) {
    bool const routed = states[t] == token_state::routed;
    for (std::int64_t e = threadIdx.x; e < da.cols(); e += row_threads) {
      S& to = da.row(t)[e];
      to = routed ? of.gradient(t, e, da.cols(), dz.row(t)[e], adds ? to : S{0}) : S{0};
    }
  }
}

}  // namespace gpu

template <class Noise, class S>
void add_logit_noise(cuda_engine& engine, Noise const& noise, token_table const& tokens, matrix_view<S const> a,
                     matrix_view<S> z) {
  engine.launch("add_logit_noise", gpu::add_noise<Noise, S>, {engine.blocks_in_turn(z.rows()), gpu::row_threads},
                detail::logit_noise_of<Noise, S>{noise, tokens, a}, z);
}

template <class Noise, class S>
void logit_noise_gradient(cuda_engine& engine, Noise const& noise, token_table const& tokens, token_state const* states,
                          matrix_view<S const> a, matrix_view<S const> dz, matrix_view<S> da, bool adds) {
  engine.launch("logit_noise_gradient", gpu::noise_gradient<Noise, S>,
                {engine.blocks_in_turn(da.rows()), gpu::row_threads},
                detail::logit_noise_of<Noise, S>{noise, tokens, a}, states, dz, da, adds);
}

}  // namespace moiety::inline MOIETY_ABI::kernels

// SPDX-License-Identifier: Apache-2.0
// The gate of a token on a CUDA device: one thread a token, and one an element of dx.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/token_gate.hpp>

#include <cuda_runtime.h>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

inline constexpr int gate_threads = 256;

inline launch_shape thread_an_element(std::int64_t elements) {
  return {(elements + gate_threads - 1) / gate_threads, gate_threads};
}
__device__ inline std::int64_t element_of_thread() { return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

template <class S> __global__ void __launch_bounds__(gate_threads) logistic_of(std::int64_t tokens, S* gates) {
  std::int64_t const t = element_of_thread();
  if (t < tokens) gates[t] = logistic(gates[t]);
}

template <class S>
__global__ void __launch_bounds__(gate_threads)
    logit_gradients(std::int32_t const* positions, std::int64_t tokens, S const* gates, S* dgates) {
  std::int64_t const t = element_of_thread();
  if (t < tokens) dgates[t] = kernels::detail::gate_logit_gradient(dgates[t], gates[t], positions[t]);
}

template <class S>
__global__ void __launch_bounds__(gate_threads) add_outer(S const* dlogits, S const* w, matrix_view<S> const dx) {
  std::int64_t const i = element_of_thread();
  if (i >= dx.rows() * dx.cols()) return;
  std::int64_t const t = i / dx.cols(), c = i % dx.cols();
  dx(t, c) = fma(dlogits[t], w[c], dx(t, c));
}

}  // namespace gpu

template <class S> void gate_tokens(cuda_engine& engine, std::int64_t tokens, S* gates) {
  engine.launch("gate_tokens", gpu::logistic_of<S>, gpu::thread_an_element(tokens), tokens, gates);
}

template <class S>
void gate_logit_gradients(cuda_engine& engine, permutation_view const& order, S const* gates, S* dgates) {
  engine.launch("gate_logit_gradients", gpu::logit_gradients<S>, gpu::thread_an_element(order.tokens), order.positions,
                order.tokens, gates, dgates);
}

template <class S> void add_gate_inputs(cuda_engine& engine, S const* dlogits, S const* w, matrix_view<S> dx) {
  engine.launch("add_gate_inputs", gpu::add_outer<S>, gpu::thread_an_element(dx.rows() * dx.cols()), dlogits, w, dx);
}

}  // namespace moiety::inline MOIETY_ABI::kernels

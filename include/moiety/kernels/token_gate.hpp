// SPDX-License-Identifier: Apache-2.0
// A gate of one logit a token, which scales what shared experts add to it: g = σ(z).
//
//   gate_tokens           g_t = σ(z_t), in place
//   gate_logit_gradients  dz_t = dg_t g_t (1 − g_t), in place of dg; 0 where the token has no row
//   add_gate_inputs       dx_t += dz_t w                                         w [H], dx [T × H]
#pragma once

#include <moiety/backend/host.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/matrix.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace detail {
template <class S> MOIETY_HD S gate_logit_gradient(S dgate, S gate, std::int32_t row) {
  return row < 0 ? S{0} : dgate * gate * (S{1} - gate);
}
}  // namespace detail

template <class S> void gate_tokens(host_engine& engine, std::int64_t tokens, S* gates) {
  engine.for_blocks(tokens, 4096, [&](std::int64_t t, std::int64_t end, int) {
    for (; t < end; ++t) gates[t] = logistic(gates[t]);
  });
}

template <class S>
void gate_logit_gradients(host_engine& engine, permutation_view const& order, S const* gates, S* dgates) {
  engine.for_blocks(order.tokens, 4096, [&](std::int64_t t, std::int64_t end, int) {
    for (; t < end; ++t) dgates[t] = detail::gate_logit_gradient(dgates[t], gates[t], order.positions[t]);
  });
}

template <class S> void add_gate_inputs(host_engine& engine, S const* dlogits, S const* w, matrix_view<S> dx) {
  engine.for_blocks(dx.rows(), 16, [&](std::int64_t t, std::int64_t end, int) {
    for (; t < end; ++t)
      for (std::int64_t c = 0; c < dx.cols(); ++c) dx(t, c) = fma(dlogits[t], w[c], dx(t, c));
  });
}

template <class S> void gate_tokens(cuda_engine& engine, std::int64_t tokens, S* gates);

template <class S>
void gate_logit_gradients(cuda_engine& engine, permutation_view const& order, S const* gates, S* dgates);

template <class S> void add_gate_inputs(cuda_engine& engine, S const* dlogits, S const* w, matrix_view<S> dx);

}  // namespace moiety::inline MOIETY_ABI::kernels

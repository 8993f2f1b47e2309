// SPDX-License-Identifier: Apache-2.0
// Expected loads on a CUDA device: a warp for each token, as in route.cuh, with the arithmetic and the bits of the host.
#pragma once

#include <moiety/backend/cuda.cuh>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/batch/token.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/core/normal_cdf.hpp>
#include <moiety/kernels/cuda/portable/route.cuh>
#include <moiety/kernels/cuda/portable/warp_row.cuh>
#include <moiety/kernels/expected_load.hpp>
#include <moiety/kernels/expected_load_row.hpp>

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace moiety::inline MOIETY_ABI::kernels {

namespace gpu {

/// Tokens begin, begin + route_warps, … of the units given, for one warp.
template <int N, class Noise, class S>
__device__ void expect_run(detail::logit_noise_of<Noise, S> const& of, routing_view<S> const& routing,
                           matrix_view<S const> const& noisy, std::int64_t begin, std::int64_t end,
                           run_units const& units, int experts) {
  registers_of<probability_sum, N> sums;
  for (std::int64_t t = begin; t < end; t += route_warps) {
    if (routing.states[t] != token_state::routed) continue;
    registers_of<S, N> values = {}, draw_values = {}, deviation_values = {}, left_values = {};
    warp_row<S, N> margins(values, experts), draws(draw_values, experts), deviation(deviation_values, experts),
        left(left_values, experts);
    load_row(margins, noisy.row(t));
    detail::load_noise(of, t, draws, deviation);
    detail::to_margins(margins, deviation, detail::load_thresholds<S>(margins, left, routing.slots));
    detail::to_chances(margins, draws);
    MOIETY_REGISTERS
    for (int r = 0; r < N; ++r) sums[r].add(normal_cdf(static_cast<double>(values[r])));
  }
  MOIETY_REGISTERS
  for (int r = 0; r < N; ++r) {
    int const e = lane_of_thread() + r * warp_lanes;
    exact_sum const sum(static_cast<std::int64_t>(sums[r].whole), sums[r].fraction);
    if (e < experts)
      units.each([&](statistics_view const& unit) {
        sum.add_to(unit.expected_loads[static_cast<std::size_t>(e)], add_atomically{});
      });
  }
}

/// A block has `span` tokens in a row, cut where a sequence ends.
template <int N, int Experts, class Noise, class S>
__global__ void __launch_bounds__(route_threads, 1)
    expect_loads(detail::logit_noise_of<Noise, S> const of, routing_view<S> const routing,
                 matrix_view<S const> const noisy, std::int64_t const span, batch_statistics const into) {
  std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * span;
  std::int64_t const end = begin + span < noisy.rows() ? begin + span : noisy.rows();
  std::int64_t const warp = threadIdx.x / 32u;
  bool const cut = into.count > 1;
  for (std::int64_t u = cut ? into.sequence_of(begin) : 0; begin < end; ++u) {
    std::int64_t const next = cut ? into.sequences[u] : end, last = next < end ? next : end;
    if (begin < last)
      expect_run<N>(of, routing, noisy, begin + warp, last, run_units{into.unit(0), into.unit(u), cut},
                    row_size<Experts>(noisy.cols()));
    begin = last > begin ? last : begin;
  }
}

template <int N, int Experts, class Noise, class S, class AddLosses>
__global__ void __launch_bounds__(route_threads, 1)
    expect_loads_backward(detail::logit_noise_of<Noise, S> const of, routing_view<S> const routing,
                          matrix_view<S const> const noisy, AddLosses const add_losses, matrix_view<S> const dlogits,
                          matrix_view<S> const ddeviation) {
  int const experts = row_size<Experts>(noisy.cols());
  for (std::int64_t t = first_token(); t < noisy.rows(); t += token_stride()) {
    registers_of<S, N> gradient_values = {};
    warp_row<S, N> gradient(gradient_values, experts);
    if (routing.states[t] == token_state::routed) {
      registers_of<S, N> values = {}, draw_values = {}, deviation_values = {}, dlogit_values = {}, left_values = {};
      warp_row<S, N> row(values, experts), draws(draw_values, experts), deviation(deviation_values, experts),
          dz(dlogit_values, experts), left(left_values, experts);
      load_row(row, noisy.row(t));
      load_row(dz, static_cast<S const*>(dlogits.row(t)));
      detail::load_noise(of, t, draws, deviation);
      add_losses(t, row, gradient, dz);
      detail::chance_gradient(row, draws, deviation, routing.slots, gradient, dz, left);
      dz.each([&](int e, S g) { dlogits.row(t)[e] = g; });
    }
    if (ddeviation.data() != nullptr) gradient.each([&](int e, S g) { ddeviation.row(t)[e] = g; });
  }
}

}  // namespace gpu

template <class Noise, class S, int Experts>
void add_expected_loads(cuda_engine& engine, Noise const& noise, token_table const& tokens, routing_view<S> routing,
                        matrix_view<S const> a, matrix_view<S const> noisy, batch_statistics const& into) {
  std::int64_t const span = gpu::tokens_of_block(engine, noisy.rows());
  gpu::with_registers<Experts>(noisy.cols(), [&](auto n) {
    engine.launch("add_expected_loads", &gpu::expect_loads<n(), Experts, Noise, S>,
                  {gpu::blocks_of(noisy.rows(), span), gpu::route_threads},
                  detail::logit_noise_of<Noise, S>{noise, tokens, a}, routing, noisy, span, into);
  });
}

template <class Noise, class S, int Experts, class AddLosses>
void expected_load_gradient(cuda_engine& engine, Noise const& noise, token_table const& tokens, routing_view<S> routing,
                            matrix_view<S const> a, matrix_view<S const> noisy, AddLosses const& add_losses,
                            matrix_view<S> dlogits, matrix_view<S> ddeviation) {
  gpu::with_registers<Experts>(noisy.cols(), [&](auto n) {
    engine.launch("expected_load_gradient", &gpu::expect_loads_backward<n(), Experts, Noise, S, AddLosses>,
                  {gpu::route_blocks(engine, noisy.rows()), gpu::route_threads},
                  detail::logit_noise_of<Noise, S>{noise, tokens, a}, routing, noisy, add_losses, dlogits, ddeviation);
  });
}

}  // namespace moiety::inline MOIETY_ABI::kernels

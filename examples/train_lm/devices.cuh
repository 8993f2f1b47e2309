// SPDX-License-Identifier: Apache-2.0
// The model on a CUDA device: what for_rows and the products are there. Weights and gradients go to the host for each step of
// the optimiser, see moiety/training/host_copy.hpp.
#pragma once

#include "gemm.hpp"
#include "rows.hpp"

#include <moiety/cuda.cuh>

#include <algorithm>
#include <array>
#include <cstdint>

namespace lm {

/// The ranks are threads that share a device.
struct of_devices : mo::deployment<mo::dynamic> {
  using backend = mo::cuda;
};

/// A team of a device: neighbours in a warp, lane i of which has the columns i, i + 16, …
struct half_warp {
  int lane;
  unsigned members;

  template <class F> __device__ void columns(std::int64_t n, F const& f) const {
    for (std::int64_t i = lane; i < n; i += lanes) f(i);
  }
  template <class F> __device__ void once(F const& f) const {
    if (lane == 0) f();
  }

  template <class Real, class Step, class Merge>
  __device__ Real reduce(std::int64_t n, Real start, Step const& step, Merge const& merge) const {
    Real mine = start;
    for (std::int64_t i = lane; i < n; i += lanes) mine = step(mine, i);
    Real all = __shfl_sync(members, mine, 0, lanes);
    for (int l = 1; l < lanes; ++l) all = merge(all, __shfl_sync(members, mine, l, lanes));
    return all;
  }
};

namespace detail {

inline constexpr int team_threads = 128;

template <class F> __global__ void __launch_bounds__(team_threads) visit_rows(std::int64_t rows, F const f) {
  int const thread = static_cast<int>(threadIdx.x);
  half_warp const team{thread % lanes, 0xffffu << (thread / lanes % 2 * lanes)};
  constexpr int teams = team_threads / lanes;
  std::int64_t const stride = std::int64_t{gridDim.x} * teams;
  for (std::int64_t row = std::int64_t{blockIdx.x} * teams + thread / lanes; row < rows; row += stride) f(team, row);
}

template <class T>
void nt(mo::cuda_engine& engine, row_groups const& groups, mo::matrix_view<T const> x, mo::matrix_view<T const> w,
        mo::matrix_view<T> y) {
  mo::kernels::grouped_gemm_nt<T>(engine, groups.count(), groups.offsets(), groups.rows(), rows_of(x),
                                  std::array{blocks_of(w, groups)}, y.cols(), x.cols(),
                                  mo::kernels::gpu::store_rows<T, T>{y.data(), y.stride()});
}
template <class T>
void nn(mo::cuda_engine& engine, row_groups const& groups, mo::matrix_view<T const> x, mo::matrix_view<T const> w,
        mo::matrix_view<T> y) {
  mo::kernels::grouped_gemm_nn<T>(engine, groups.count(), groups.offsets(), groups.rows(), std::array{rows_of(x)},
                                  std::array{blocks_of(w, groups)}, y.cols(), x.cols(),
                                  mo::kernels::gpu::store_rows<T, T>{y.data(), y.stride()});
}

template <class T>
void tn(mo::cuda_engine& engine, row_groups const& groups, mo::matrix_view<T const> y, mo::matrix_view<T const> x,
        mo::matrix_view<T> w, bool accumulate) {
  mo::kernels::grouped_gemm_tn<T>(engine, groups.count(), groups.offsets(), groups.rows(), rows_of(y), rows_of(x),
                                  blocks_of(w, groups), y.cols(), x.cols(), accumulate);
}

}  // namespace detail

template <class F> void for_rows(mo::cuda_engine& engine, std::int64_t rows, std::int64_t, F const& f) {
  constexpr int teams = detail::team_threads / lanes;
  std::int64_t const blocks = std::min((rows + teams - 1) / teams, std::int64_t{64} * engine.multiprocessors());
  engine.launch("rows of a model", detail::visit_rows<F>, {blocks, detail::team_threads}, rows, f);
}

}  // namespace lm

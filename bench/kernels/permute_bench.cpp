// SPDX-License-Identifier: Apache-2.0
// Building the permutation that groups rows by expert (read the time per token), and copying rows by it.
#include "routed.hpp"
#include "shapes.hpp"

#include <moiety/core/matrix.hpp>
#include <moiety/kernels/gather.hpp>

#include <cstdint>
#include <string>

namespace {

using namespace bench;

void permute(benchmark::State& state, int threads, std::int64_t tokens) {
  routed data(tokens);
  double const slots = static_cast<double>(tokens) * routed::slots;
  work const todo{0, slots * 3 * sizeof(std::int32_t), static_cast<double>(tokens)};
  measure<float>(state, threads, todo,
                 [&] { moiety::kernels::build_permutation(engine(threads), data.routes.view(), data.order.view()); });
}

void permute_rows(benchmark::State& state, int threads, std::int64_t tokens) {
  routed const data(tokens);
  moiety::matrix<float> x(tokens, routed::hidden, engine(1).memory());
  moiety::matrix<float> rows(tokens * routed::slots, routed::hidden, engine(1).memory());
  fill(x.data(), x.rows() * x.cols(), 2);
  auto const elements = static_cast<double>(tokens * routed::hidden);
  work const todo{0, elements * (routed::slots + 1) * sizeof(float), static_cast<double>(tokens), traffic::stream};
  moiety::matrix_view<float const> const from{x.data(), x.rows(), x.cols()};
  moiety::matrix_view<float> const to{rows.data(), rows.rows(), rows.cols()};
  measure<float>(state, threads, todo, [&] { moiety::kernels::gather(engine(threads), data.order.view(), from, to); });
}

[[maybe_unused]] bool const added = [] {
  for (std::int64_t const tokens : token_counts)
    add("permute_rows/top_8_of_2048/tokens:" + std::to_string(tokens),
        [=](benchmark::State& state, int threads) { permute_rows(state, threads, tokens); });
  for (std::int64_t const tokens : token_counts)
    add("permute/128_experts_top_8/tokens:" + std::to_string(tokens),
        [=](benchmark::State& state, int threads) { permute(state, threads, tokens); });
  return true;
}();

}  // namespace

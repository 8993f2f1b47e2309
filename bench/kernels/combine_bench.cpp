// SPDX-License-Identifier: Apache-2.0
// The weighted sum of expert rows back into tokens, against a copy by memcpy. Below the size of the last cache it may
// beat that.
#include "routed.hpp"
#include "shapes.hpp"

#include <moiety/core/matrix.hpp>
#include <moiety/kernels/combine.hpp>

#include <cstdint>
#include <string>

namespace {

using namespace bench;

void combine(benchmark::State& state, int threads, std::int64_t tokens) {
  routed const data(tokens);
  moiety::matrix<float> rows(tokens * routed::slots, routed::hidden, engine(1).memory());
  moiety::matrix<float> y(tokens, routed::hidden, engine(1).memory());
  fill(rows.data(), rows.rows() * rows.cols(), 2);
  auto const elements = static_cast<double>(tokens * routed::hidden);
  work const todo{2 * elements * routed::slots, elements * (routed::slots + 1) * sizeof(float),
                  static_cast<double>(tokens), traffic::copy};
  moiety::matrix_view<float const> const from{rows.data(), rows.rows(), rows.cols()};
  moiety::matrix_view<float> const to{y.data(), y.rows(), y.cols()};
  measure<float>(state, threads, todo, [&] {
    moiety::kernels::combine(engine(threads), data.order.view(), from, static_cast<float const*>(data.routes.weights),
                             static_cast<float const*>(nullptr), to);
  });
}

[[maybe_unused]] bool const added = [] {
  for (std::int64_t const tokens : token_counts)
    add("combine/top_8_of_2048/tokens:" + std::to_string(tokens),
        [=](benchmark::State& state, int threads) { combine(state, threads, tokens); });
  return true;
}();

}  // namespace

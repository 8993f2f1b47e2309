// SPDX-License-Identifier: Apache-2.0
// Building the permutation that groups rows by expert: read the time per token.
#include "routed.hpp"
#include "shapes.hpp"

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

[[maybe_unused]] bool const added = [] {
  for (std::int64_t const tokens : token_counts)
    add("permute/128_experts_top_8/tokens:" + std::to_string(tokens),
        [=](benchmark::State& state, int threads) { permute(state, threads, tokens); });
  return true;
}();

}  // namespace

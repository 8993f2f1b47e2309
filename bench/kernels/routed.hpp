// SPDX-License-Identifier: Apache-2.0
// Tokens with random logits, and where they were routed: what the benchmarks around the experts begin with.
#pragma once

#include "measure.hpp"

#include <moiety/batch/batch.hpp>
#include <moiety/batch/permutation.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/permute.hpp>
#include <moiety/kernels/route.hpp>
#include <moiety/router/router.hpp>

#include <cstdint>

namespace bench {

struct routed {
  static constexpr std::int64_t slots = 8, hidden = 2048;  // Qwen3-30B-A3B
  using router_type = moiety::router<moiety::softmax, moiety::top_k<slots>, moiety::renormalised>;

  router_type router;
  moiety::matrix<float> logits;
  moiety::routing<float> routes;
  moiety::permutation order;

  explicit routed(std::int64_t tokens, std::int64_t experts = 128)
      : logits(tokens, experts, engine(1).memory()),
        routes(tokens, experts, slots, engine(1).memory()),
        order(tokens, experts, slots, engine(1).memory()) {
    fill(logits.data(), tokens * experts, 1);
    route(engine(1));
    moiety::kernels::build_permutation(engine(1), routes.view(), order.view());
  }

  moiety::matrix_view<float const> const_logits() const { return {logits.data(), logits.rows(), logits.cols()}; }
  void route(moiety::host_engine& on) {
    moiety::kernels::route(on, router, const_logits(), moiety::batch{}, moiety::non_finite::reject, routes.view());
  }
};

}  // namespace bench

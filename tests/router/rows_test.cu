// SPDX-License-Identifier: Apache-2.0
// The policies of a router over the lanes of a warp have the bits of the host: ids, weights, states, statistics, gradients.
#include <moiety/router/rows.hpp>

#include "../../examples/own_policies.hpp"
#include "kernels/cuda/portable/route_cases.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace {

namespace mo = moiety;
using route_cases::compare;
using route_cases::kind;
using route_cases::kinds;

}  // namespace

TEST_CASE("scores: sqrt_softplus and raw logits") {
  for (kind const of : kinds) {
    compare<mo::router<mo::sqrt_softplus, mo::top_k<3>, mo::renormalised>, float, 40>(40, of, 37);
    compare<mo::router<mo::sqrt_softplus, mo::top_k<3>, mo::renormalised>, double, 9>(9, of, 37);
    compare<mo::router<mo::raw_logits, mo::top_k<3>, mo::scale<std::ratio<5, 2>>>, float, 40>(40, of, 37);
    compare<mo::router<mo::raw_logits, mo::top_k<3>, mo::softmax_of_selected>, float, 40>(40, of, 37);
  }
}

TEST_CASE("bias and groups") {
  using biased = mo::router<mo::sigmoid, mo::selection_bias, mo::top_k<3>, mo::renormalised>;
  using both = mo::router<mo::sigmoid, mo::selection_bias, mo::groups<8, 4>, mo::top_k<6>, mo::renormalised>;
  using grouped = mo::router<mo::softmax, mo::groups<5, 2, mo::group_score::largest>, mo::top_k<4>>;
  for (kind const of : kinds) {
    compare<biased, float, 40>(40, of, 37);
    compare<both, float, 256>(256, of, 37);
    compare<both, float>(40, of, 37);
    compare<grouped, float, 40>(40, of, 37);
    compare<grouped, double, 40>(40, of, 37);
  }
}

TEST_CASE("selections: top_p, hash, precomputed, with slots that stay empty and tokens that are refused") {
  for (kind const of : kinds) {
    compare<mo::router<mo::softmax, mo::top_p<4, std::ratio<1, 2>>, mo::renormalised>, float, 40>(40, of, 37);
    compare<mo::router<mo::softmax, mo::top_p<4, std::ratio<1, 2>>, mo::softmax_of_selected>, float, 40>(40, of, 37);
    compare<mo::router<mo::sqrt_softplus, mo::hash<3>, mo::renormalised>, float, 40>(40, of, 37);
    compare<mo::router<mo::raw_logits, mo::precomputed<3>>, float, 40>(40, of, 37);
  }
}

TEST_CASE("forced selections: draws are those of the host, and weights those of the scores") {
  for (kind const of : {kind::normal, kind::wild}) {
    compare<mo::router<mo::sigmoid, mo::forced<3>>, float, 40>(40, of, 37);
    compare<mo::router<mo::sigmoid, mo::forced<3, mo::imbalance::zipf>, mo::renormalised>, float, 40>(40, of, 37);
    compare<mo::router<mo::softmax, mo::forced<3, mo::imbalance::round_robin>>, float, 40>(40, of, 37);
    compare<mo::router<mo::softmax, mo::forced<3, mo::imbalance::one_hot>>, float, 40>(40, of, 37);
  }
}

TEST_CASE("a selection and a weight rule of a user") {
  for (kind const of : kinds)
    compare<mo::router<mo::softmax, own::spread_out<3>, own::sharpened>, float, 40>(40, of, 37);
}

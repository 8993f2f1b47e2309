// SPDX-License-Identifier: Apache-2.0
#include <moiety/kernels/cuda/portable/route.cuh>

#include <moiety/moiety.hpp>

#include "kernels/cuda/portable/route_cases.hpp"

#include <doctest/doctest.h>

#include <cstdint>

namespace {

namespace mo = moiety;
using route_cases::compare;
using route_cases::kind;
using route_cases::kinds;

// A user's policy, as in the contract programs.
struct tempered_softmax {
  float temperature = 0.5f;
  MOIETY_HD void forward(mo::score_row auto& row) const {
    auto const peak = row.max();
    row.map([&](auto v) { return mo::exp((v - peak) / temperature); });
    auto const total = row.sum();
    row.map([&](auto v) { return v / total; });
  }
  MOIETY_HD void backward(mo::score_row auto const& scores, mo::score_row auto& gradient) const {
    auto const inner = mo::dot(scores, gradient);
    gradient.map(scores, [&](auto g, auto p) { return p * (g - inner) / temperature; });
  }
};

/// Scores are the logits, which are no probabilities; but rows are said to be.
struct unchanged {
  static constexpr bool rows_are_probabilities = true;
  MOIETY_HD void forward(mo::score_row auto&) const {}
  MOIETY_HD void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

/// No score is a number where the first logit is above 1.
struct nan_if_raised {
  MOIETY_HD void forward(mo::score_row auto& row) const {
    auto const first = row[0];
    if (first > 1) row.map([](auto v) { return v * mo::detail::not_a_number<decltype(v)>; });
  }
  MOIETY_HD void backward(mo::score_row auto const&, mo::score_row auto&) const {}
};

using renormalised = mo::router<mo::softmax, mo::top_k<8>, mo::renormalised>;
using sigmoid = mo::router<mo::sigmoid, mo::top_k<2>, mo::renormalised, mo::scale<>>;
using of_selected = mo::router<mo::softmax, mo::top_k<3>, mo::softmax_of_selected>;
using tempered = mo::router<tempered_softmax, mo::top_k<3>>;

}  // namespace

TEST_CASE("routing, statistics and gradients have the bits of the host, with the number of experts known at run time") {
  for (std::int64_t const experts : {8, 40, 64, 128, 160, 384, 1000})
    for (kind const of : kinds) compare<renormalised, float>(experts, of, 37);
  for (std::int64_t const tokens : {0, 1, 1000}) compare<renormalised, float>(40, kind::wild, tokens);
}

TEST_CASE("and known at compile time") {
  for (kind const of : kinds) {
    for (std::int64_t const tokens : {0, 1, 37, 300}) compare<renormalised, float, 8>(8, of, tokens);
    compare<renormalised, float, 160>(160, of, 37);
    compare<sigmoid, float, 128>(128, of, 37);
    compare<of_selected, float, 3>(3, of, 37);
    compare<mo::router<mo::softmax, mo::top_k<1>>, float, 1>(1, of, 37);
    compare<mo::router<mo::softmax, mo::top_k<40>, mo::renormalised>, float, 40>(40, of, 37);
    compare<of_selected, double, 64>(64, of, 37);
    compare<sigmoid, double, 1000>(1000, of, 9);
  }
}

TEST_CASE("policies of users run as they do on the host") {
  for (kind const of : kinds) {
    compare<tempered, float, 40>(40, of, 37);
    compare<mo::router<unchanged, mo::top_k<3>>, float, 40>(40, of, 37);  // sums outside 0 … 1
    compare<mo::router<unchanged, mo::top_k<3>>, double, 3>(3, of, 37);
    compare<mo::router<nan_if_raised, mo::top_k<3>>, float, 8>(8, of, 37);
  }
}

TEST_CASE("more than 1024 experts are refused in one sentence") {
  mo::cuda_engine& engine = route_cases::shared_engine();
  mo::matrix_view<float const> const logits(nullptr, 0, 1025);
  CHECK_THROWS_WITH_AS((mo::kernels::route<renormalised, float>(engine, renormalised{}, logits, {},
                                                                mo::non_finite::sanitise, {0, 1025, 8})),
                       "a router has at most 1024 experts on a GPU, but this one has 1025.", mo::config_error);
}

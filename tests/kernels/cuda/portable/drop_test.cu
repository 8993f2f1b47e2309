// SPDX-License-Identifier: Apache-2.0
// What is dropped on the device against the host, bit for bit.
#include <moiety/kernels/cuda/portable/drop.cuh>

#include <moiety/moiety.hpp>

#include "device_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

/// A user's rule: tokens of small ids stay.
struct by_id {
  template <class S> MOIETY_HD static double key(S, S, mo::token_view const& token, std::int64_t expert) {
    return -static_cast<double>(token.id * (expert + 1));
  }
};

enum class skew { uniform, zipf, one };

constexpr std::int64_t k = 3;
using router = mo::router<mo::softmax, mo::top_k<k>, mo::scale<std::ratio<5, 2>>>;

template <class S> struct routed {
  std::int64_t tokens, experts;
  std::vector<std::int32_t> ids, token_ids;
  std::vector<S> weights;
  std::vector<mo::token_state> states;
  std::vector<std::int64_t> sequences;

  /// Weights are often equal, some are −0, and some slots are empty.
  routed(std::int64_t t, std::int64_t e, skew how, std::mt19937_64& words) : tokens(t), experts(e) {
    auto const below = [&](std::int64_t n) {
      return static_cast<std::int64_t>(words() % static_cast<std::uint64_t>(n));
    };
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < t; ++i) {
      states.push_back(below(7) == 0 ? static_cast<mo::token_state>(below(4)) : mo::token_state::routed);
      token_ids.push_back(static_cast<std::int32_t>(below(50)));
      std::int64_t const first = how == skew::one ? 0 : how == skew::zipf ? below(1 + below(e)) : below(e);
      for (std::int64_t j = 0; j < k; ++j) {
        ids.push_back(below(20) == 0 ? mo::no_expert : static_cast<std::int32_t>((first + j) % e));
        double const weight = below(2) == 0 ? static_cast<double>(below(3)) / 4 : normal(words);
        weights.push_back(ids.back() < 0 ? S{0} : below(10) == 0 ? -S{0} : static_cast<S>(weight));
      }
    }
    sequences = {0, 0, t / 5, t / 5, t - t / 7, t, t};
  }
};

template <class Capacity, class S> void compare(std::int64_t tokens, std::int64_t experts, skew how, bool cut) {
  std::uint64_t const number = std::random_device{}();
  INFO("seed ", number, ", ", tokens, " tokens, ", experts, " experts, skew ", static_cast<int>(how), ", cut ", cut);
  std::mt19937_64 words(number);
  routed<S> of(tokens, experts, how, words);
  mo::batch about{.first_row = 1000, .step = 7, .layer = 2};
  if (cut) about.sequences = of.sequences;
  testing::device_values<std::int32_t> ids(of.ids), token_ids(of.token_ids), sources(tokens * k), positions(tokens * k);
  testing::device_values<S> weights(of.weights);
  testing::device_values<mo::token_state> states(of.states);
  testing::device_values<std::int64_t> starts(experts + 1);
  std::int64_t const bytes = mo::kernels::drop_workspace<Capacity>(about.units());
  testing::device_values<std::int64_t> work(bytes / 8);
  testing::succeed(cudaDeviceSynchronize());  // poisoned by another stream

  mo::cuda_engine gpu{mo::cuda{}};
  mo::routing_view<S> const routes{tokens, experts, k, ids.data(), weights.data(), states.data()};
  mo::permutation_view const order{tokens, experts, k, starts.data(), sources.data(), positions.data()};
  mo::batch on_device = about;
  on_device.ids = {token_ids.data(), of.token_ids.size()};
  mo::kernels::build_permutation<S>(gpu, routes, order);
  mo::kernels::drop_beyond<Capacity>(gpu, router{}, on_device, order, routes, work.data());

  mo::host_engine cpu{mo::host{.threads = 1}};
  mo::routing_view<S> const wanted{tokens, experts, k, of.ids.data(), of.weights.data(), of.states.data()};
  mo::permutation rows(tokens, experts, k, *std::pmr::new_delete_resource());
  mo::batch on_host = about;
  on_host.ids = of.token_ids;
  mo::kernels::build_permutation<S>(cpu, wanted, rows.view());
  mo::kernels::drop_beyond<Capacity>(cpu, router{}, on_host, rows.view(), wanted);
  CHECK(ids.host() == of.ids);
  CHECK(testing::same_bits(weights.host(), of.weights));
  CHECK(states.host() == of.states);
}

template <class Capacity, class S = float> void compare_all() {
  for (std::int64_t const tokens : {0, 1, 37, 512})
    for (bool const cut : {false, true}) {
      compare<Capacity, S>(tokens, 5, skew::uniform, cut);
      compare<Capacity, S>(tokens, 40, skew::zipf, cut);
      compare<Capacity, S>(tokens, 40, skew::one, cut);  // most experts are empty
    }
  compare<Capacity, S>(700, k, skew::one, true);  // all tokens to every expert
}

}  // namespace

TEST_CASE("what is dropped on a device is what the host drops") {
  compare_all<mo::capacity<std::ratio<1>>>();
  compare_all<mo::capacity<std::ratio<3, 4>, mo::drop::position, mo::per::sequence>>();
  compare_all<mo::capacity<std::ratio<1, 2>, mo::drop::priority, mo::rounded_down>>();
  compare_all<mo::capacity<std::ratio<1, 4>, mo::drop::random, mo::per::sequence, mo::renormalise_after_drop>>();
  compare_all<mo::capacity<std::ratio<1, 2>, mo::renormalise_after_drop>, double>();
  compare_all<mo::capacity<std::ratio<1, 2>, by_id>>();
}

TEST_CASE("a capacity of nothing drops all, and one above all loads nothing") {
  compare_all<mo::capacity<std::ratio<1, 100000>, mo::rounded_down>>();
  compare_all<mo::capacity<std::ratio<1, 100000>, mo::rounded_down, mo::at_least<4>, mo::per::sequence>>();
  compare_all<mo::capacity<std::ratio<100>>>();
}

TEST_CASE("only offsets of sequences need workspace") {
  using by_call = mo::capacity<std::ratio<1>>;
  using by_sequence = mo::capacity<std::ratio<1>, mo::per::sequence>;
  CHECK(mo::kernels::drop_workspace<by_call>(9) == 0);
  CHECK(mo::kernels::drop_workspace<by_sequence>(9) == 80);
}

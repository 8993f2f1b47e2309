// SPDX-License-Identifier: Apache-2.0
// Losses and capacities over sequences: sequences of data ranks, and sequences whose parts lie on tensor and context ranks.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <ratio>

namespace mo = moiety;

namespace {

struct balanced : mo::layer_spec<ranks::size> {
  using router = mo::router<mo::sigmoid, mo::top_k<2>>;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>, mo::importance<mo::over::sequence>,
                            mo::communication_balance<4, 2, mo::over::sequence>, mo::load_balance<>>;
};
struct limited : mo::layer_spec<ranks::size> {
  using router = ranks::softmax_2;
  using losses = mo::losses<mo::load_balance<mo::over::sequence>>;
  using capacity = mo::capacity<std::ratio<3, 4>, mo::per::sequence>;
};

template <class Spec> void check() {
  auto const options = ranks::trained<Spec>();
  struct on {
    mo::layout shape;
    ranks::cut tokens;
    std::vector<std::int64_t> sequences;
  };
  // A sequence without tokens, ranks without tokens of a sequence, sequences on one rank of those that could share them.
  std::vector<on> const all{
      {{.data = 4, .expert = 4}, {17, 0, 40, 7}, {0, 9, 17, 17, 57, 64}},
      {{.data = 2, .expert = 2}, {24, 40}, {0, 24, 30, 64}},
      {{.tensor = 4, .expert = 4}, {17, 0, 40, 7}, {0, 30, 64}},
      {{.tensor = 2, .context = 2, .expert = 2}, {5, 30, 0, 29}, {0, 64}},
      {{.data = 2, .tensor = 2, .expert = 4}, {10, 20, 30, 4}, {0, 15, 30, 31, 64}},
      {{.data = 2, .context = 2, .expert = 2}, {0, 30, 34, 0}, {0, 30, 64}},
  };
  for (on const& each : all) {
    INFO(mo::detail::sentence(each.shape));
    ranks::tokens_of_all about{.mask = std::vector<std::uint8_t>(64, 1), .sequences = each.sequences};
    for (std::size_t t = 0; t < 64; t += 5) about.mask[t] = 0;
    auto const one = ranks::step_on<Spec, float>({}, {{64}}, options, about);
    ranks::check_same(ranks::step_on<Spec, float>(each.shape, {each.tokens}, options, about), one, each.shape);
  }
}

}  // namespace

TEST_CASE("losses over sequences") { check<balanced>(); }
TEST_CASE("capacities of sequences") { check<limited>(); }

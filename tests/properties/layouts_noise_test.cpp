// SPDX-License-Identifier: Apache-2.0
// Random numbers are those of logical rows, and choices that the caller brings are by token: both whatever the layout.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <cstdint>

namespace mo = moiety;

namespace {

using noisy = ranks::small<mo::router<mo::jitter<>, mo::logit_noise, mo::softmax, mo::top_k<2>>, mo::noisy_load<>>;
using brought = ranks::small<mo::router<mo::softmax, mo::precomputed<2>>>;
using forced = ranks::small<mo::router<mo::softmax, mo::forced<2, mo::imbalance::one_hot>>>;

}  // namespace

TEST_CASE("jitter, noisy logits and the loss of their expected loads") {
  ranks::check_layouts<noisy, float>(ranks::few_layouts, ranks::trained<noisy>());
}

TEST_CASE("experts that the caller brings, of tokens of which some are padding") {
  ranks::tokens_of_all about;
  for (std::int32_t t = 0; t < 64; ++t) {
    about.experts.insert(about.experts.end(), {t * 5 % 8, (t * 5 + 1 + t % 3) % 8});
    about.mask.push_back(t % 6 == 2 ? 0 : 1);
  }
  ranks::check_layouts<brought, float>(ranks::few_layouts, ranks::trained<brought>(), about);
}

TEST_CASE("all tokens to the experts of one rank") {
  ranks::check_layouts<forced, float>(ranks::few_layouts, ranks::trained<forced>());
}

TEST_CASE("every token is padding") {
  ranks::tokens_of_all const about{.mask = std::vector<std::uint8_t>(64, 0)};
  auto const options = ranks::trained<forced>();
  auto const one = ranks::step_on<forced, float>({}, {{64}}, options, about);
  CHECK(one.y == std::vector<float>(one.y.size()));
  for (mo::layout const& shape : ranks::few_layouts)
    ranks::check_same(ranks::step_on<forced, float>(shape, {{17, 0, 40, 7}}, options, about), one, shape);
}

// SPDX-License-Identifier: Apache-2.0
// Layers with fewer experts than ranks: each expert is held by several ranks, whole or in parts, or some ranks replicate all.
#include "properties/ranks.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <ratio>
#include <vector>

namespace mo = moiety;

namespace {

template <std::int64_t Experts, int K> struct few : ranks::small<mo::router<mo::sigmoid, mo::top_k<K>>> {
  static constexpr mo::dims size{.hidden = 20, .ffn = 12, .experts = Experts};
};
struct limited : few<2, 1> {
  using capacity = mo::capacity<std::ratio<3, 4>>;
};

template <class Spec> void check(std::vector<mo::layout> const& shapes) {
  ranks::check_layouts<Spec, float>(shapes, ranks::trained<Spec>());
}

std::vector<mo::layout> const of_two{{.data = 4, .expert = 2, .expert_tensor = 2},
                                     {.data = 2, .tensor = 2, .expert = 2, .expert_tensor = 2},
                                     {.data = 4, .expert = 2},
                                     {.data = 4, .expert_tensor = 4},
                                     {.data = 4}};

}  // namespace

TEST_CASE("two experts on four ranks") { check<few<2, 1>>(of_two); }
TEST_CASE("two experts that every token chooses, on four ranks") { check<few<2, 2>>(of_two); }
TEST_CASE("two experts with a capacity, on four ranks") { check<limited>(of_two); }
TEST_CASE("one expert on two and four ranks") {
  check<few<1, 1>>({{.data = 2}, {.data = 2, .expert_tensor = 2}, {.data = 4, .expert_tensor = 2}});
}

TEST_CASE("three experts on three, four and six ranks") {
  using spec = few<3, 2>;
  check<spec>({{.data = 3, .expert = 3}, {.tensor = 3, .expert = 3}, {.data = 4, .expert_tensor = 2}});
  auto const options = ranks::trained<spec>();
  auto const one = ranks::step_on<spec, float>({}, {{64}}, options);
  for (mo::layout const& shape : {mo::layout{.data = 6, .expert = 3}, mo::layout{.data = 3, .tensor = 2, .expert = 3},
                                  mo::layout{.data = 6, .expert = 3, .expert_tensor = 2}})
    for (ranks::cut const& tokens : {ranks::cut{11, 11, 11, 11, 10, 10}, ranks::cut{17, 0, 30, 7, 0, 10}}) {
      INFO(mo::detail::sentence(shape));
      ranks::check_same(ranks::step_on<spec, float>(shape, {tokens}, options), one, shape);
    }
}

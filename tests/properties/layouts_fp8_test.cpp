// SPDX-License-Identifier: Apache-2.0
// Products of 8 bits have the bits of one rank where experts are whole: a row's scale is its own, whoever multiplies it. Over
// an expert_tensor axis each rank scales its own units, and results agree within the rounding of 8 bits.
#include "properties/ranks.hpp"

#include <moiety/dispatcher/all_to_all.hpp>
#include <moiety/experts/fp8.hpp>

#include <doctest/doctest.h>

#include <vector>

namespace mo = moiety;

namespace {

struct spec : ranks::small<ranks::softmax_2> {
  using shared = mo::shared_experts<2>;
};

template <class T, class Dispatcher = mo::all_to_all>
ranks::outcome<T> step(mo::layout const& shape, ranks::share how) {
  return ranks::step_on<spec, T, Dispatcher, mo::threads, mo::host, mo::numerics::invariant, mo::fp8_products>(
      shape, {ranks::tokens_of(shape.stage(), how)}, ranks::trained<spec>());
}

template <class Dispatcher> void check() {
  using T = mo::bf16;
  auto const one = step<T>({}, ranks::share::even);
  for (mo::layout const& shape : ranks::few_layouts)
    for (auto const how : {ranks::share::even, ranks::share::uneven, ranks::share::one_rank}) {
      INFO(mo::detail::sentence(shape), " ", static_cast<int>(how));
      ranks::check_same(step<T, Dispatcher>(shape, how), one, shape);
    }
}

}  // namespace

TEST_CASE("products of 8 bits on any layout of whole experts") { check<mo::all_to_all>(); }
TEST_CASE("products of 8 bits, in chunks") { check<mo::chunked<2>>(); }

TEST_CASE("products of 8 bits over an expert_tensor axis") {
  auto const one = step<float>({}, ranks::share::even);
  for (mo::layout const& shape :
       {mo::layout{.data = 2, .expert_tensor = 2}, {.data = 4, .expert = 2, .expert_tensor = 2}}) {
    auto const many = step<float>(shape, ranks::share::uneven);
    ranks::check_routing(many, one);
    CHECK(ranks::distance(many.y, one.y) < 0.02);
    CHECK(ranks::distance(many.dx, one.dx) < 0.02);
  }
}

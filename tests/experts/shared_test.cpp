// SPDX-License-Identifier: Apache-2.0
#include <moiety/experts/shared.hpp>

#include <moiety/experts/activation.hpp>

#include <doctest/doctest.h>

#include <type_traits>

namespace mo = moiety;

using experts = mo::gated_mlp<mo::silu>;
using two = mo::shared_experts<2>;
using qwen = mo::shared_experts<1, mo::sigmoid_gated, mo::shared_ffn<5632>>;
using own = mo::shared_experts<3, mo::mlp<mo::relu>, mo::shared_ffn<7>>;

TEST_CASE("shared experts have the width and the kind of the spec's experts, or their own") {
  static_assert(two::check() && qwen::check() && own::check());
  CHECK(two::width(1408) == 2816);
  CHECK(qwen::width(1408) == 5632);
  CHECK(own::width(1408) == 21);
  static_assert(std::is_same_v<two::mlp_type<experts>, experts>);
  static_assert(std::is_same_v<own::mlp_type<experts>, mo::mlp<mo::relu>>);
  static_assert(!two::gated && qwen::gated && !own::gated);
  static_assert(mo::is_shared<two> && mo::is_shared<mo::no_shared> && !mo::is_shared<experts>);
  CHECK(mo::no_shared::width(1408) == 0);
}

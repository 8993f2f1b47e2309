// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/roles.hpp>

#include <moiety/router/expert_choice.hpp>
#include <moiety/router/sinkhorn.hpp>
#include <moiety/router/token_rounding.hpp>
#include <moiety/router/top_p.hpp>

#include <doctest/doctest.h>

#include <ratio>
#include <type_traits>

namespace mo = moiety;

namespace {

using all = mo::detail::router_roles<mo::scale<std::ratio<5, 2>>, mo::renormalised, mo::top_k<3>, mo::groups<4, 2>,
                                     mo::selection_bias, mo::sigmoid>;
using few = mo::detail::router_roles<mo::top_k<1>, mo::softmax>;

}  // namespace

static_assert(mo::detail::fits_a_role<mo::sinkhorn<2>> && mo::detail::fits_a_role<mo::scale<>> &&
              !mo::detail::fits_a_role<int>);
static_assert(std::is_same_v<all::score, mo::sigmoid> && std::is_same_v<all::groups, mo::groups<4, 2>> &&
              std::is_same_v<all::bias, mo::selection_bias> && std::is_same_v<all::selection, mo::top_k<3>> &&
              std::is_same_v<all::weight, mo::renormalised> && all::has_scale);
static_assert(std::is_same_v<few::bias, mo::detail::no_role> && std::is_same_v<few::groups, mo::detail::no_role> &&
              std::is_same_v<few::weight, mo::as_scored> && !few::has_scale);
static_assert(mo::detail::count_if<mo::detail::is_selection, mo::top_k<1>, mo::softmax, mo::sinkhorn<2>> == 2);
static_assert(mo::detail::needs_probabilities<mo::top_p<2>> && !mo::detail::needs_probabilities<mo::top_k<2>>);
static_assert(mo::detail::reads_logits<mo::sinkhorn<2>> && !mo::detail::reads_logits<mo::token_rounding<2>>);
static_assert(mo::detail::sees_later_tokens<mo::expert_choice<2>> && mo::detail::sees_later_tokens<mo::sinkhorn<2>> &&
              mo::detail::sees_later_tokens<mo::token_rounding<2>> && !mo::detail::sees_later_tokens<mo::top_k<2>>);

TEST_CASE("each value goes to the role of its type, and the others keep theirs") {
  all roles;
  roles.assign(mo::scale<std::ratio<5, 2>>{.factor = 7});
  roles.assign(mo::selection_bias{.rate = 0.5f});
  CHECK(roles.scale_rule.factor == 7);
  CHECK(roles.bias_rule.rate == 0.5f);
  CHECK_FALSE(roles.bias_rule.centred);
  CHECK(few{}.scale_rule.factor == 1);
}

TEST_CASE("roles without a value take no room") { CHECK(sizeof(few) < sizeof(mo::scale<>) + 4 * sizeof(float)); }

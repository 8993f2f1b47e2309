// SPDX-License-Identifier: Apache-2.0
#include <moiety/router/token_rounding.cuh>

#include <moiety/moiety.hpp>

#include "router/together_cases.hpp"

#include <doctest/doctest.h>

#include <cstdint>

namespace mo = moiety;
using together_cases::compare_all;
using together_cases::compare_with_host;
using together_cases::kind;

namespace {

/// A user's rule.
struct up_if_cheap {
  MOIETY_HD static bool rounds_up(mo::rounding::facts const& of) { return of.added > 0.25 * of.dropped; }
};

template <class Rounding, int Tile = 16> using rounded = mo::router<mo::softmax, mo::token_rounding<2, Tile, Rounding>>;

}  // namespace

TEST_CASE("loads are rounded on a device to the tokens of the host") {
  compare_all<rounded<mo::rounding::nearest>>();
  compare_all<rounded<mo::rounding::nearest_by_score>>();
  compare_all<mo::router<mo::sigmoid, mo::groups<4, 2>, mo::token_rounding<2, 16, up_if_cheap>, mo::renormalised>,
              double>();
}

TEST_CASE("by every rule and tile") {
  for (std::int64_t const tokens : {37, 512}) {
    compare_with_host<rounded<mo::rounding::up>, float, 8>(8, kind::normal, tokens);
    compare_with_host<rounded<mo::rounding::down>, float, 8>(8, kind::normal, tokens);
    compare_with_host<rounded<mo::rounding::stochastic>, float, 8>(8, kind::normal, tokens);
    compare_with_host<rounded<mo::rounding::balanced>, float, 8>(8, kind::ties, tokens);
    compare_with_host<rounded<mo::rounding::nearest, 1>, float, 8>(8, kind::normal, tokens);
    compare_with_host<rounded<mo::rounding::nearest_by_score, 300>, float, 3>(3, kind::normal, tokens);
    compare_with_host<mo::router<mo::raw_logits, mo::token_rounding<3, 128, mo::rounding::nearest_by_score>>, float, 3>(
        3, kind::ties, tokens);
  }
}

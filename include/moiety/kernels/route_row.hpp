// SPDX-License-Identifier: Apache-2.0
// What routing does with the row of one token beside its policies, on every back end.
//
//   sanitise(row, to)   the state of an unmasked token. If its row is not all finite, `to` becomes what is left of it: NaN
//                       counts as −∞ and +∞ as the largest finite number. `to` may be the row itself.
//   log_sum_exp(row)    log Σ exp(v), without overflow
//   drop_non_finite(w)  0 for weights of a sanitised token that are not finite
//   first_of_group      whether a slot is the first of its token's with an expert of its group
#pragma once

#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/math.hpp>
#include <moiety/core/numbers.hpp>

#include <cstdint>

namespace moiety::inline MOIETY_ABI {
namespace kernels {

namespace detail {

/// `ids` are those of the token; a group is `size` experts in a row.
MOIETY_HD inline bool first_of_group(std::int32_t const* ids, std::int64_t slot, std::int32_t size) {
  if (ids[slot] == no_expert) return false;
  std::int32_t const group = asked_for(ids[slot]) / size;
  for (std::int64_t earlier = 0; earlier < slot; ++earlier)
    if (ids[earlier] != no_expert && asked_for(ids[earlier]) / size == group) return false;
  return true;
}

template <score_row Row> MOIETY_HD token_state sanitise(Row const& row, Row const& to) {
  using S = typename Row::value_type;
  constexpr S infinity = moiety::detail::infinity<S>, largest = moiety::detail::largest_finite<S>;
  bool const all_finite = row.sum([](S v) { return v - v; }) == S{0};  // one NaN or infinity makes the sum NaN
  if (all_finite) return token_state::routed;
  to.map(row, [](S, S v) { return v == infinity ? largest : (v >= -largest ? v : -infinity); });
  return to.max() > -infinity ? token_state::sanitised : token_state::unroutable;
}

template <score_row Row> MOIETY_HD void drop_non_finite(Row const& weights) {
  using S = typename Row::value_type;
  weights.map([](S w) { return is_finite(w) ? w : S{0}; });
}

template <score_row Row> MOIETY_HD auto log_sum_exp(Row const& row) {
  using S = typename Row::value_type;
  S const peak = row.max();
  return peak + moiety::log(row.sum([&](S v) { return moiety::exp(v - peak); }));
}

}  // namespace detail

}  // namespace kernels
}  // namespace moiety

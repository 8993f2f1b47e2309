// SPDX-License-Identifier: Apache-2.0
// Auxiliary losses of a router, and the units that they are taken over.
//
// A loss is an aggregate with a run-time `coefficient` (0: measured, not trained), a `name`, the type `over` and
//   value(statistics)                                    the loss of one unit, a pure function of its statistics
//   token_gradient(statistics, factor, z, dp, dz)        adds factor · ∂value to one token's rows: dp for what reaches
//                                                        the loss through the probabilities, dz for the logits z
// An aux loss enters the sum that is trained as coefficient · weight · value, with the weight of its unit in tokens.
//
// It may also say, as static constexpr members,
//   needs_probabilities (true)   whether it reads probabilities, which not every score rule has
//   device_groups (1)            into how many equal contiguous groups it cuts the experts; must divide their number
//   counts_groups (false)        whether it needs the tokens that each of these groups is sent
//   needs_expected_loads (false) whether it needs the loads expected under the noise of the logits. Its dp then takes what
//                                reaches the loss through the chances of experts to be chosen, see losses/noisy_load.hpp
//   uses_step_counts (false)     whether its gradient takes counts from mo::batch{.counts}, see batch/step_counts.hpp
#pragma once

#include <moiety/batch/batch.hpp>
#include <moiety/batch/routing.hpp>
#include <moiety/batch/row.hpp>
#include <moiety/batch/statistics.hpp>
#include <moiety/core/component_set.hpp>
#include <moiety/core/config.hpp>
#include <moiety/core/errors.hpp>
#include <moiety/core/exact_sum.hpp>
#include <moiety/core/matrix.hpp>
#include <moiety/kernels/route.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <string_view>

namespace moiety::inline MOIETY_ABI {

/// The tokens that one value of a loss is taken over.
namespace over {
struct sequence {
  static constexpr std::string_view name = "sequence";
};
struct micro_batch {
  static constexpr std::string_view name = "micro_batch";
};
struct global_batch {
  static constexpr std::string_view name = "global_batch";
};
}  // namespace over

template <class O>
concept loss_unit =
    std::same_as<O, over::sequence> || std::same_as<O, over::micro_batch> || std::same_as<O, over::global_batch>;

template <class L>
concept loss = requires(L const l, statistics_view const unit, span_row<float> row, span_row<float> const logits) {
  requires loss_unit<typename L::unit>;
  { l.coefficient } -> std::convertible_to<float>;
  { L::name } -> std::convertible_to<std::string_view>;
  { l.value(unit) } -> std::same_as<double>;
  l.token_gradient(unit, 1.0f, logits, row, row);
};

template <class L> inline constexpr bool needs_probabilities = true;
template <class L>
requires requires { L::needs_probabilities; }
inline constexpr bool needs_probabilities<L> = L::needs_probabilities;

template <class L> inline constexpr std::int64_t device_groups = 1;
template <class L>
requires requires { L::device_groups; }
inline constexpr std::int64_t device_groups<L> = L::device_groups;

/// The groups whose tokens a loss needs counted; 0 if none.
template <class L> inline constexpr std::int64_t counted_groups = 0;
template <class L>
requires requires { L::counts_groups; }
inline constexpr std::int64_t counted_groups<L> = L::counts_groups ? device_groups<L> : 0;

template <class L> inline constexpr bool needs_expected_loads = false;
template <class L>
requires requires { L::needs_expected_loads; }
inline constexpr bool needs_expected_loads<L> = L::needs_expected_loads;

template <class L> inline constexpr bool uses_step_counts = false;
template <class L>
requires requires { L::uses_step_counts; }
inline constexpr bool uses_step_counts<L> = L::uses_step_counts;

namespace detail {

/// Throws data_error unless the experts are `groups` equal groups.
inline void check_groups(std::string_view loss, std::int64_t groups, statistics_view const& of) {
  auto const experts = static_cast<std::int64_t>(of.experts.size());
  require<data_error>(experts % groups == 0, loss, " of ", groups, " groups was given statistics of ", experts,
                      " experts, which the groups do not divide.");
}

/// Σ c_e over the experts of one of `groups` groups, and Σ_t p_te over them.
MOIETY_HD inline std::int64_t slots_of_group(statistics_view const& of, std::size_t group, std::size_t groups) {
  std::size_t const size = of.experts.size() / groups;
  std::int64_t sum = 0;
  for (std::size_t e = group * size; e < (group + 1) * size; ++e) sum += of.experts[e].count;
  return sum;
}
inline exact_sum probability_of_group(statistics_view const& of, std::size_t group, std::size_t groups) {
  std::size_t const size = of.experts.size() / groups;
  exact_sum sum;
  for (std::size_t e = group * size; e < (group + 1) * size; ++e) sum += of.experts[e].probability;
  return sum;
}

/// Adds ∂value/∂logits of one unit to dlogits [T × E], for tokens whose logits are all finite.
template <class Loss, class Context, class Router>
void add_loss_gradient(Context& ctx, Loss const& loss, statistics_view const& unit,
                       matrix_view<typename Context::sum const> logits, Router const& router,
                       matrix_view<typename Context::sum> dlogits) {
  using S = typename Context::sum;
  static_assert(detail::check_host<Context>());
  detail::require<data_error>(dlogits.rows() == logits.rows() && dlogits.cols() == logits.cols(),
                              "the gradient of logits ", detail::shape(logits.rows(), logits.cols()),
                              " was given the shape ", detail::shape(dlogits.rows(), dlogits.cols()), '.');
  auto const scores = router.scores_alone();  // which experts a token has does not matter to its probabilities
  routing<S> const routes = scores.forward(ctx, logits, non_finite::sanitise);
  kernels::route_backward(
      ctx.engine(), scores, logits, routes.view(), static_cast<S const*>(nullptr),
      [&](std::int64_t, span_row<S> z, span_row<S> dp, span_row<S> dz) { loss.token_gradient(unit, S{1}, z, dp, dz); },
      dlogits, true);
}

}  // namespace detail

/// The losses of a spec. A value holds one of each, made from any of them in any order.
template <class... Losses> class losses : public component_set<Losses...> {
  static constexpr std::int64_t most_groups = std::max({std::int64_t{0}, moiety::counted_groups<Losses>...});

  static consteval bool check() {
    static_assert((loss<Losses> && ...), "mo::losses was given a type that is no loss.");
    static_assert(((detail::count_of<Losses, Losses...> == 1) && ...), "mo::losses takes each loss once.");
    static_assert(((moiety::counted_groups<Losses> == 0 || moiety::counted_groups<Losses> == most_groups) && ...),
                  "mo::losses takes communication_balance of one number of device groups.");
    return true;
  }
  static_assert(check());

 public:
  constexpr losses() noexcept = default;
  using component_set<Losses...>::component_set;
  static constexpr int count = sizeof...(Losses);
  template <class L> static constexpr bool contains = detail::count_of<L, Losses...> > 0;
  /// Whether some loss is taken over units of kind Unit.
  template <class Unit> static constexpr bool any_over = (false || ... || std::same_as<typename Losses::unit, Unit>);
  /// What the losses need of a router, the statistics and a batch.
  static constexpr bool needs_probabilities = (false || ... || moiety::needs_probabilities<Losses>);
  static constexpr std::int64_t counted_groups = most_groups;
  static constexpr bool needs_expected_loads = (false || ... || moiety::needs_expected_loads<Losses>);
  static constexpr bool uses_step_counts = (false || ... || moiety::uses_step_counts<Losses>);
  /// Whether the device groups of each loss divide the number of experts.
  static constexpr bool groups_divide([[maybe_unused]] std::int64_t experts) {
    return (true && ... && (experts % moiety::device_groups<Losses> == 0));
  }
};

template <class T> inline constexpr bool is_losses = false;
template <class... Losses> inline constexpr bool is_losses<losses<Losses...>> = true;

namespace detail {
/// Losses that can be asked what they are. The size is asked so that mo::losses makes its own complaint.
template <class T> inline constexpr bool sound_losses = false;
template <class... Losses>
inline constexpr bool sound_losses<losses<Losses...>> = sizeof(losses<Losses...>) > 0 && (loss<Losses> && ...) &&
                                                        ((count_of<Losses, Losses...> == 1) && ...);
}  // namespace detail

/// The statistics of a batch of logits [T × E] and its routing, which may be anyone's, as one unit. `groups` of experts,
/// if any, have their tokens counted.
template <class Context, class Router>
routing_statistics statistics(Context& ctx, matrix_view<typename Context::sum const> logits, Router const& router,
                              routing_view<typename Context::sum> const& routes, std::int64_t groups = 0) {
  static_assert(detail::check_host<Context>());
  detail::require<data_error>(groups >= 0 && (groups == 0 || logits.cols() % groups == 0), "the statistics of ",
                              logits.cols(), " experts cannot be those of ", groups, " equal groups.");
  detail::require<data_error>(routes.tokens == logits.rows() && routes.experts == logits.cols(),
                              "the statistics of logits ", detail::shape(logits.rows(), logits.cols()),
                              " were given a routing of the shape ", detail::shape(routes.tokens, routes.experts), '.');
  routes.check();
  statistics_table table(logits.cols(), {}, groups);
  kernels::accumulate(ctx.engine(), router, logits, routes, table.view());
  return routing_statistics(table.view().unit(0));
}

}  // namespace moiety
